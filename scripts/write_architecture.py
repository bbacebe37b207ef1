"""Writes into docs/architecture.md what repeats the code: the layers, the lines of every file and folder, and those
from `aurify train` to the GRPO loss.

python scripts/write_architecture.py"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aurify"
PAGE = ROOT / "docs" / "architecture.md"
TO_THE_LOSS = (
    *("cli/train.py", "pipeline/recipe.py", "pipeline/check.py", "pipeline/run.py", "pipeline/start.py"),
    *("pipeline/stage.py", "loops/online.py", "engine/engine.py", "algorithms/grpo.py"),
)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("layers", layers_table()), ("lines", lines_table())):
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", rf"\1\n{table}\n\n\2", page, flags=re.DOTALL)
    num_lines = sum(count_lines(SOURCE / file) for file in TO_THE_LOSS)
    page = re.sub(r"\d+ files, \d+ lines:", f"{len(TO_THE_LOSS)} files, {num_lines} lines:", page)
    PAGE.write_text(page, encoding="utf-8")


def layers_table() -> str:
    """From tests/test_layers.py, lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "LAYERS"
    ]
    rows = [
        f"| {number} | {' '.join(f'`{name}`' for name in sorted(names))} |"
        for number, names in enumerate(ast.literal_eval(value))
    ]
    return "\n".join(["| layer | folders and files |", "|---|---|", *rows])


def lines_table() -> str:
    rows = []
    for folder in [SOURCE, *sorted(p for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__")]:
        found = sorted(folder.glob("*.py") if folder == SOURCE else folder.rglob("*.py"))
        files = {str(path.relative_to(folder)): count_lines(path) for path in found if count_lines(path)}
        listing = ", ".join(f"{file} {lines}" for file, lines in files.items())
        rows.append(f"| `{folder.relative_to(ROOT / 'src')}/` | {sum(files.values())} | {listing} |")
    total = sum(count_lines(path) for path in SOURCE.rglob("*.py"))
    rows.append(f"| **package** | **{total}** | |")
    for name in ("tests", "benchmarks", "examples"):
        rows.append(f"| `{name}/` | {sum(count_lines(path) for path in (ROOT / name).rglob('*.py'))} | |")
    return "\n".join(["| folder | lines | files |", "|---|---|---|", *rows])


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()

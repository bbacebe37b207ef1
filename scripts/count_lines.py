"""Writes the number of lines of every file and folder into docs/architecture.md: `python scripts/count_lines.py`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "<!-- lines -->"


def count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    source = ROOT / "src" / "aurify"
    rows = []
    for folder in [source, *sorted(p for p in source.iterdir() if p.is_dir() and p.name != "__pycache__")]:
        files = {path.name: count(path) for path in sorted(folder.glob("*.py")) if count(path)}
        name = folder.relative_to(ROOT / "src")
        rows.append(
            f"| `{name}/` | {sum(files.values())} | {', '.join(f'{file} {lines}' for file, lines in files.items())} |"
        )
    total = sum(count(path) for path in source.rglob("*.py"))
    rows.append(f"| **package** | **{total}** | |")
    for name in ("tests", "benchmarks", "examples"):
        rows.append(f"| `{name}/` | {sum(count(path) for path in (ROOT / name).rglob('*.py'))} | |")
    page = ROOT / "docs" / "architecture.md"
    head = page.read_text(encoding="utf-8").partition(MARK)[0]
    page.write_text(
        f"{head}{MARK}\n\n| folder | lines | files |\n|---|---|---|\n" + "\n".join(rows) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

"""Whether a folder in which `make demo` has run shows what the README says: `python scripts/check_demo.py FOLDER`.

Every stage finished and its held-out number rose, and the environment holds no package that only tests bring.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STAGES = ("sft", "reward", "dpo", "grpo")
TEST_PACKAGES = ("pytest", "trl", "peft", "datasets", "httpx")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/check_demo.py FOLDER")
    folder = Path(sys.argv[1])
    files = sorted((folder / "runs").glob("*/results.json"))
    if not files:
        sys.exit(f"{folder}/runs holds no run with a results.json; the demo ended before its first stage did")
    results = json.loads(files[-1].read_text())
    problems = [*problems_with(results), *problems_with_packages(folder / ".venv")]
    if problems:
        sys.exit(f"The demo in {files[-1].parent} did not do what it is for:\n" + "\n".join(problems))
    moves = (f"{name} {results[name]['before']:.3f} -> {results[name]['after']:.3f}" for name in STAGES)
    print(f"The demo's stages all rose: {', '.join(moves)}")


def problems_with(results: dict[str, dict[str, Any]]) -> list[str]:
    found = [f"stage {name!r} has no result" for name in STAGES if name not in results]
    for name, result in results.items():
        before, after = result.get("before"), result.get("after")
        if result.get("status") != "finished":
            found.append(f"stage {name!r} is {result.get('status')}, not finished")
        elif before is None or after is None or not after > before:
            found.append(f"stage {name!r}: {result.get('measure')} went from {before} to {after}; it should rise")
    return found


def problems_with_packages(environment: Path) -> list[str]:
    return [
        f"{name} is installed in {environment}; the demo is to run on what its own target installs"
        for name in TEST_PACKAGES
        if any(environment.glob(f"lib/python*/site-packages/{name}/__init__.py"))
    ]


if __name__ == "__main__":
    main()

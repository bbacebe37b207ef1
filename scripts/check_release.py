"""Whether a tag such as v0.2.0 may be released: pyproject.toml has that version, and CHANGELOG.md a section of it that
is not called unreleased. `python scripts/check_release.py v0.2.0`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def find_release_problems(tag: str, root: Path = ROOT) -> list[str]:
    """What stands against it, a line each."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    problems = []
    if tag != f"v{version}":
        problems.append(f"the tag is {tag!r}, and pyproject.toml has version {version!r}; tag v{version}, or change it")
    if not re.search(rf"^## {re.escape(version)}(?! \(unreleased\)).*$", changes, re.MULTILINE):
        problems.append(f"CHANGELOG.md has no section `## {version}` that is released; write its date instead")
    return problems


if __name__ == "__main__":
    found = find_release_problems(*sys.argv[1:2])
    print("\n".join(found) or "the tag, the version and the changes agree")
    sys.exit(bool(found))

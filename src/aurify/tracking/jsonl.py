"""JSON lines that survive a kill: every line is written and flushed on its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Complete lines; one that a kill cut short is left out."""
    rows = []
    # not splitlines: a text may hold other line separators, such as U+2028
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def cut(path: Path, last_step: int) -> None:
    """Drops lines of steps that will be run again, so that a resumed run's file reads like a straight one's."""
    if path.exists():
        replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read(path) if row["step"] <= last_step))


def replace_text(path: Path, text: str) -> None:
    """The whole file or the old one, never half."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)

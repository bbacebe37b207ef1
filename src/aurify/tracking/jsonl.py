"""JSON files that survive a kill: when `append_log` returns, lines are complete on disk; objects are replaced whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aurify.files import replace_text, replaced_file


def append_log(path: Path, *rows: Mapping[str, Any]) -> None:
    """Adds one line a row. Half a surrogate pair, which UTF-8 cannot hold, is written as its JSON escape."""
    with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_log(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A whole file, one line a row."""
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_log_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Complete lines, raw and parsed. A line that a kill cut short, perhaps within a character, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:  # bytes: only "\n" ends a line, whatever other separators the texts hold
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield line.rstrip(b"\n") + b"\n", row


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """One row after the other: a file of samples may be larger than memory."""
    return (row for _, row in read_log_lines(path))


def drop_log_after(path: Path, last_step: int) -> None:
    """Drops the lines of steps that will run again, so that a resumed run leaves the same file as a straight one."""
    if not path.exists():
        return
    with replaced_file(path) as scratch, scratch.open("wb") as file:
        file.writelines(line for line, row in read_log_lines(path) if row["step"] <= last_step)


def read_run_file(path: Path) -> dict[str, Any]:
    """Empty where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_run_file(path: Path, values: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")

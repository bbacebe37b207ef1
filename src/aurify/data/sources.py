"""Rows out of files and hubs, each with its place, so that an error can name it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aurify.config import did_you_mean, missing_file
from aurify.errors import UserError


class Row(dict[str, Any]):
    """A row, and where it stands ("pairs.jsonl:17")."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place

    def need(self, column: str) -> Any:
        """The value of a column that must be there."""
        if column not in self:
            raise UserError(f"{self.place}: no column {column!r}{did_you_mean(column, self)}")
        value = self[column]
        if value is None or value == "" or value == []:
            raise UserError(f"{self.place}: column {column!r} is empty ({value!r}); fill it or remove the row")
        return value

    def text(self, column: str) -> str:
        value = self.need(column)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: column {column!r} holds {type(value).__name__}; expected text")
        return value


def load_rows(path: str | Path) -> list[Row]:
    """JSONL (one object a line) or JSON (a list of objects)."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(missing_file(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSON lines") from None
    rows = list(rows_of(path, text))
    if not rows:
        raise UserError(f"{path}: the file has no rows; expected one JSON object a line")
    return rows


def rows_of(path: Path, text: str) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        try:
            entries = [(f"{path}: row {k}", entry) for k, entry in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    else:
        entries = []
        for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028, inside of texts
            if line.strip():
                place = f"{path}:{number}"
                try:
                    entries.append((place, json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UserError(f"{place}: not JSON: {error.msg} (column {error.colno}): {line[:80]!r}") from None
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{place}: a row is a JSON object; this is {type(entry).__name__}")
        yield Row(entry, place)


def load_hub(name: str, config: str | None, split: str) -> list[Row]:
    """A data set of the Hugging Face hub (extra `hub`)."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"data set {name!r} is on the hub; to read it: pip install 'aurify[hub]'") from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data set {name!r}: the hub did not give it ({reason}); give a JSONL file as path") from error
    return [Row(dict(row), f"{name}/{split}: row {k}") for k, row in enumerate(rows)]

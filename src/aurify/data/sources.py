"""Rows out of files and hubs, each with its place, so that an error can name it."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aurify.config import did_you_mean, missing_file
from aurify.data.files import Reject, entries_of
from aurify.data.gsm8k import one_form
from aurify.data.tally import BadRow
from aurify.errors import UserError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz")  # files of a folder; for no format
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Row(dict[str, Any]):
    """A row, where it stands ("pairs.jsonl:17"), and which source of a mixture it belongs to. tidied: calculator
    annotations were taken out of it (see aurify.data.gsm8k)."""

    def __init__(self, values: Mapping[str, Any], place: str, part: int = 0, *, tidied: bool = False) -> None:
        super().__init__(values)
        self.place, self.part, self.tidied = place, part, tidied

    def bad(self, problem: str, kind: str = "") -> BadRow:
        return BadRow(self.place, problem, kind)

    def need(self, column: str) -> Any:
        """The value of a column that must be there."""
        if column not in self:
            raise self.bad(f"no column {column!r}{did_you_mean(column, map(str, self))}", f"no column {column!r}")
        value = self[column]
        if value is None or value == "" or value == []:
            problem = f"column {column!r} is empty"
            raise self.bad(f"{problem} ({value!r}); fill it or remove the row", problem)
        return value

    def text(self, column: str) -> str:
        value = self.need(column)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.bad(f"column {column!r} holds {type(value).__name__}; expected text")
        return value


def raising(error: BadRow) -> None:
    raise error


def row_as_read(values: Mapping[str, Any], place: str) -> Row:
    """The row of a file. GSM8K's have one form, whoever reads them."""
    known = one_form(values)
    return Row(values, place) if known is None else Row(known[0], place, tidied=known[1])


def iter_rows(path: str | Path, reject: Reject = raising) -> Iterator[Row]:
    """The rows of a file, one after the other: JSON lines, JSON, CSV, parquet or plain text, by its content."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(missing_file(path))
    for place, entry in entries_of(path, reject):
        if isinstance(entry, dict):
            yield row_as_read(entry, place)
        else:
            reject(BadRow(place, f"a row is a JSON object; this is {type(entry).__name__}"))


def load_rows(path: str | Path) -> list[Row]:
    """All rows of a file; the first that cannot be read is an error."""
    rows = list(iter_rows(path))
    if not rows:
        raise UserError(f"{path}: the file has no rows; expected one JSON object a line")
    return rows


def load_hub(name: str, config: str | None, split: str) -> list[Row]:
    """A data set of the Hugging Face hub (extra `hub`)."""
    return list(hub_rows(name, config, split, stream=False))


def hub_rows(name: str, config: str | None, split: str, *, stream: bool) -> Iterator[Row]:
    """stream: rows come over the network as they are asked for, and nothing is kept."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"data set {name!r} is on the hub; to read it: pip install 'aurify[hub]'") from None
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=stream)
        for number, row in enumerate(rows):
            yield row_as_read(row, f"{name}/{split}: row {number}")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data set {name!r}: the hub did not give it ({reason}); give a JSONL file as path") from error


def is_hub_id(path: str) -> bool:
    """`owner/name` that is no file here."""
    if not HUB_ID.fullmatch(path) or path.lower().endswith(SUFFIXES):
        return False
    return not Path(path).exists() and not Path(path).parent.is_dir()


def is_one_file(path: str) -> bool:
    """No pattern, no folder and no data set of the hub. The file itself may be missing."""
    place = Path(path).expanduser()
    return place.is_file() or not (place.is_dir() or glob.has_magic(path) or is_hub_id(path))


def files_at(path: str, split: str) -> list[Path]:
    """The files that a path means: one, those of a pattern, or those of a folder whose names hold the split."""
    place = Path(path).expanduser()
    if place.is_dir():
        inside = [file for file in sorted(place.rglob("*")) if file.name.lower().endswith(SUFFIXES)]
        files = [file for file in inside if split in str(file.relative_to(place))] or inside
        if not files:
            raise UserError(f"{path}: the folder holds no data; expected files that end in {', '.join(SUFFIXES)}")
        return files
    if not place.exists() and glob.has_magic(path):
        files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if Path(name).is_file()]
        if not files:
            raise UserError(f"{path}: no file matches the pattern")
        return files
    return [place]


def source_rows(
    path: str, *, config: str | None = None, split: str = "train", stream: bool = False, reject: Reject = raising
) -> Iterator[Row]:
    """The rows that a path means: of a file, a pattern, a folder or a data set of the hub."""
    if is_hub_id(path):
        yield from hub_rows(path, config, split, stream=stream)
        return
    found = False
    for file in files_at(path, split):
        for row in iter_rows(file, reject):
            found = True
            yield row
    if not found and reject is raising:
        raise UserError(f"{path}: the file has no rows; expected one JSON object a line")

"""What a path means (a file, a pattern, a folder, a data set of the hub), and its rows.

A source is opened once in a process, however many stages, tasks and guides ask for its rows: they are kept until the
file changes or `forget_rows` is called."""

from __future__ import annotations

import glob
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

from aurify.errors import UserError
from aurify.files import require
from aurify.http import hub_answers, offline_hub
from aurify.rows.files import ENDINGS, build_row, read_row_file
from aurify.rows.row import BadRow, Row
from aurify.rows.values import drop_nulls_in_objects

Entries = Iterable[Row | BadRow]
KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")  # files of a folder
SUFFIXES = (*KINDS, *(f"{kind}{ending}" for kind in KINDS for ending in ENDINGS))
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NO_ROWS = "the file has no rows; expected one JSON object a line"


class Kept:
    """Rows that are read as far as anybody has asked, and kept as bytes: they take less memory than objects, and each
    reader gets rows of its own."""

    def __init__(self, state: object, rest: Iterator[Row | BadRow]) -> None:
        self.state, self.rest, self.known = state, rest, list[bytes | BadRow]()

    def __iter__(self) -> Iterator[Row | BadRow]:
        index = 0
        while index < len(self.known) or self.read_on():
            entry = self.known[index]
            yield Row(*pickle.loads(entry)) if isinstance(entry, bytes) else entry
            index += 1

    def read_on(self) -> bool:
        try:
            entry = next(self.rest, None)
        except UserError:
            self.state = None  # whoever asks next reads anew, and is told as well
            raise
        if isinstance(entry, Row):
            self.known.append(pickle.dumps((dict(entry), entry.location, entry.part, entry.changes)))
        elif entry is not None:
            self.known.append(entry)
        return entry is not None


KEPT: dict[str, Kept] = {}


def keep_rows(name: str, state: object, read: Callable[[], Iterator[Row | BadRow]]) -> Kept:
    """The rows kept under a name, as long as the state they were read in is the same."""
    if name not in KEPT or KEPT[name].state != state:
        KEPT[name] = Kept(state, read())
    return KEPT[name]


def forget_rows() -> None:
    """Frees the memory of what was read."""
    KEPT.clear()


# ---------------------------------------------------------------------- files and the hub


def open_file_rows(path: str | Path) -> Entries:
    """The rows of a file; for one that cannot be read, the error that says why."""
    path = Path(path).expanduser()
    if not path.is_file():
        return read_row_file(path)  # says what is missing
    stat = path.stat()
    return keep_rows(str(path), (stat.st_ino, stat.st_mtime_ns, stat.st_size), lambda: read_row_file(path))


def open_hub_rows(name: str, subset: str | None, split: str, *, stream: bool = False) -> Entries:
    """A data set of the Hugging Face hub (extra `hub`). stream: rows come over the network as they are asked for."""

    def read() -> Iterator[Row | BadRow]:
        datasets = require("datasets", "hub", f"data set {name!r} is on the hub; to read it")
        from huggingface_hub import constants

        answers = Path(name).exists() or hub_answers()
        try:
            with nullcontext() if answers else offline_hub(datasets.config, constants):
                rows = datasets.load_dataset(name, subset, split=split, streaming=stream)
            for number, row in enumerate(rows):
                yield build_row(
                    {key: drop_nulls_in_objects(value) for key, value in row.items()}, f"{name}/{split}: row {number}"
                )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            problem = f"did not give it ({reason})" if answers else "does not answer, and the data set is not cached"
            raise UserError(f"data set {name!r}: the hub {problem}; give a JSONL file as path") from error

    return keep_rows(f"{name} {subset} {split} {stream}", "hub", read)


def open_rows(path: str, *, subset: str | None = None, split: str = "train", stream: bool = False) -> Entries:
    """The rows that a path means: of a file, a pattern, a folder or a data set of the hub."""
    if is_hub_rows_id(path):
        return open_hub_rows(path, subset, split, stream=stream)
    return (entry for file in find_row_files(path, split) for entry in open_file_rows(file))


def load_rows(path: str | Path) -> list[Row]:
    """All rows of a file. Raises for the first that cannot be read, and where there is none."""
    rows = list(map(raise_bad_row, open_file_rows(path)))
    if not rows:
        raise UserError(f"{path}: {NO_ROWS}")
    return rows


def load_hub_rows(name: str, subset: str | None, split: str) -> list[Row]:
    return list(map(raise_bad_row, open_hub_rows(name, subset, split)))


def raise_bad_row(entry: Row | BadRow) -> Row:
    if isinstance(entry, BadRow):
        raise entry
    return entry


# ---------------------------------------------------------------------- what a path means


def is_hub_rows_id(path: str) -> bool:
    """`owner/name` that is no file here."""
    if not HUB_ID.fullmatch(path) or path.lower().endswith(SUFFIXES):
        return False
    return not Path(path).exists() and not Path(path).parent.is_dir()


def is_one_row_file(path: str) -> bool:
    """No pattern, no folder and no data set of the hub. The file itself may be missing."""
    file = Path(path).expanduser()
    return file.is_file() or not (file.is_dir() or glob.has_magic(path) or is_hub_rows_id(path))


def find_row_files(path: str, split: str) -> list[Path]:
    """The files that a path means: one, those of a pattern, or those of a folder whose names hold the split."""
    whole = Path(path).expanduser()
    if whole.is_dir():
        inside = [file for file in sorted(whole.rglob("*")) if file.name.lower().endswith(SUFFIXES)]
        files = [file for file in inside if split in str(file.relative_to(whole))] or inside
        if not files:
            raise UserError(f"{path}: the folder holds no data; expected files that end in {', '.join(KINDS)}")
        return files
    if not whole.exists() and glob.has_magic(path):
        files = [Path(name) for name in sorted(glob.glob(str(whole), recursive=True)) if Path(name).is_file()]
        if not files:
            raise UserError(f"{path}: no file matches the pattern")
        return files
    return [whole]

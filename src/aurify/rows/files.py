"""The rows of one file, one after the other. What kind of file it is follows from its first bytes, never from its name:
parquet, JSON lines, JSON, CSV or plain text, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from aurify.config import missing_file
from aurify.errors import UserError
from aurify.files import require
from aurify.rows.gsm8k import tidy
from aurify.rows.row import BadRow, Row
from aurify.rows.values import HALF, has_half_character, prune, unpack

Entries = Iterator[tuple[str, Any]]  # location, and what stands there; a BadRow where it cannot be read
PARQUET, GZIP = b"PAR1", b"\x1f\x8b"
HEAD = 65_536  # bytes that decide on the kind of file
HEADER_FIELD = re.compile(r"[\w .:/()-]{1,60}")
BATCH = 256  # rows of a parquet file that are in memory at a time
ROW_COLUMNS = ("messages", "conversations", "conversation", "prompt", "chosen", "chat")


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """Every row; for one that cannot be read, the error that says why."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(missing_file(path))
    for location, entry in read_entries(path):
        yield build_row(entry, location)


def build_row(entry: Any, location: str) -> Row | BadRow:
    if isinstance(entry, BadRow):
        return entry
    if not isinstance(entry, Mapping):
        return BadRow(location, f"a row is a JSON object; this is {type(entry).__name__}")
    values, changes = tidy({name: unpack(value) for name, value in entry.items()})
    half = next((name for name, value in values.items() if has_half_character(value)), None)
    if half is not None:
        return BadRow(location, f"column {half!r} holds {HALF}; write the whole character, or remove it", HALF)
    return Row(values, location, changes=changes)


def read_entries(path: Path) -> Entries:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
        file.seek(0)
        content: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
        try:
            head = content.read(HEAD)
            content.seek(0)
            if head.startswith(PARQUET):
                yield from read_parquet(path, content)
            else:
                lines = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
                yield from read_decoded(path, lines, head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n"))
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise UserError(f"{path}: not UTF-8 text ({reason}); expected JSON lines") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: the gzip file is damaged ({error}); fetch it again") from None


def read_decoded(path: Path, lines: IO[str], head: str) -> Entries:
    if head.startswith("["):
        return read_json_list(path, lines.read())
    if head.startswith("{") or any(line.lstrip().startswith("{") for line in head.split("\n")[:20]):
        return read_json_object(path, lines.read()) if is_one_object(head) else read_json_lines(path, lines)
    delimiter = find_delimiter(head)
    return read_paragraphs(path, lines) if delimiter is None else read_csv(path, lines, delimiter)


# ---------------------------------------------------------------------- JSON


def read_json_lines(path: Path, lines: IO[str]) -> Entries:
    for number, line in enumerate(lines, 1):  # cut at \n alone: U+2028 may stand inside of texts
        if line.strip():
            location = f"{path}:{number}"
            try:
                yield location, json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"not JSON: {error.msg} (column {error.colno}): {line.rstrip()[:80]!r}"
                yield location, BadRow(location, problem, "not JSON")
            except (RecursionError, ValueError) as error:  # nesting, or a number of thousands of digits
                yield location, BadRow(location, f"not JSON: {error}", "not JSON")


def read_json_list(path: Path, text: str) -> Entries:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    return ((f"{path}: row {number}", entry) for number, entry in enumerate(entries, 1))


def is_one_object(head: str) -> bool:
    """An object over several lines: its first line alone is only the beginning of one."""
    first, more, _ = head.partition("\n")
    return bool(more) and bool(re.fullmatch(r'\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?', first.strip()))


def read_json_object(path: Path, text: str) -> Entries:
    """One object: the list of rows that it holds, or a row by itself. Text that is no JSON is read line by line, so
    that the error names the line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return read_json_lines(path, io.StringIO(text))
    lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1 and not any(name in whole for name in ROW_COLUMNS):
        return ((f"{path}: row {number}", entry) for number, entry in enumerate(lists[0], 1))
    return iter([(f"{path}: row 1", whole)])


# ---------------------------------------------------------------------- tables and plain text


def find_delimiter(head: str) -> str | None:
    """What separates the columns, if the text begins like a table: names of columns, and as many values below."""
    first = head.partition("\n")[0].rstrip("\r")
    if first == "text":
        return ","
    for delimiter in sorted(",;\t", key=first.count, reverse=True):
        names = next(csv.reader([first], delimiter=delimiter), [])
        if len(names) < 2 or len(set(names)) < len(names) or not all(map(HEADER_FIELD.fullmatch, names)):
            continue
        records = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
        try:
            following = [record for record, _ in zip(records, range(6), strict=False) if record][1:]
        except csv.Error:
            continue
        if sum(len(record) == len(names) for record in following) * 2 >= len(following) > 0:
            return delimiter
    return None


def read_csv(path: Path, lines: IO[str], delimiter: str) -> Entries:
    csv.field_size_limit(sys.maxsize)
    records = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in next(records)]
    while True:
        location = f"{path}:{records.line_num + 1}"
        try:
            record = next(records, None)
        except csv.Error as error:
            yield location, BadRow(location, f"not CSV: {error}", "not CSV")
            continue
        if record is None:
            return
        if len(record) == len(header):
            yield location, dict(zip(header, record, strict=True))
        elif record:
            problem = f"{len(record)} fields; the first line names {len(header)} columns"
            yield location, BadRow(location, problem, "another number of fields than columns")


def read_paragraphs(path: Path, lines: IO[str]) -> Entries:
    """Plain text: what blank lines separate."""
    paragraph: list[str] = []
    begin = 1
    for number, line in enumerate(lines, 1):
        if line.strip():
            begin = begin if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield f"{path}:{begin}", {"text": "".join(paragraph).strip()}
            paragraph = []
    if paragraph:
        yield f"{path}:{begin}", {"text": "".join(paragraph).strip()}


def read_parquet(path: Path, content: IO[bytes]) -> Entries:
    parquet = require("pyarrow.parquet", "hub", f"{path} is a parquet file; to read it")
    try:
        with parquet.ParquetFile(content) as file:
            number = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for entry in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", {name: prune(value) for name, value in entry.items()}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the parquet file cannot be read ({error}); write it anew") from error

"""Rows out of one file, one after the other. Which kind of file it is follows from its first bytes, never from its
name: parquet, JSON lines, JSON, CSV or plain text, each of them gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from aurify.data.tally import BadRow
from aurify.errors import UserError

Entry = tuple[str, Any]  # place, and what stands there: a row if it is a mapping
Reject = Callable[[BadRow], None]
PARQUET, GZIP = b"PAR1", b"\x1f\x8b"
HEADER_FIELD = re.compile(r"[\w .:/()-]{1,60}")
BATCH = 256  # rows of a parquet file that are in memory at a time


def entries_of(path: Path, reject: Reject) -> Iterator[Entry]:
    """Every entry with its place. What cannot be parsed goes to `reject`, which may raise."""
    with open_bytes(path) as file:
        head = file.read(65_536)
        file.seek(0)
        if head.startswith(PARQUET):
            yield from parquet_entries(path)
            return
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from text_entries(path, lines, head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n"), reject)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSON lines"
            ) from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: the gzip file is damaged ({error}); fetch it again") from None


def open_bytes(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def text_entries(path: Path, lines: IO[str], head: str, reject: Reject) -> Iterator[Entry]:
    if head.startswith("["):
        yield from json_entries(path, lines.read())
    elif head.startswith("{") or any(line.lstrip().startswith("{") for line in head.split("\n")[:20]):
        if is_one_object(head):
            yield from object_entries(path, lines.read(), reject)
        else:
            yield from jsonl_entries(path, lines, reject)
    elif (delimiter := delimiter_of(head)) is not None:
        yield from csv_entries(path, lines, delimiter, reject)
    else:
        yield from paragraph_entries(path, lines)


def json_entries(path: Path, text: str) -> Iterator[Entry]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: the JSON is nested too deeply to be read") from None
    yield from ((f"{path}: row {k}", entry) for k, entry in enumerate(entries, 1))


def is_one_object(head: str) -> bool:
    """An object over several lines: its first line alone is only the beginning of one."""
    first, more, _ = head.partition("\n")
    return bool(more) and bool(re.fullmatch(r'\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?', first.strip()))


def object_entries(path: Path, text: str, reject: Reject) -> Iterator[Entry]:
    """One object: the list of rows that it holds, or a row by itself. Where it is none, the lines are told apart."""
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        yield from jsonl_entries(path, io.StringIO(text), reject)
        return
    lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    is_row = any(name in whole for name in ("messages", "conversations", "conversation", "prompt", "chosen", "chat"))
    if len(lists) == 1 and not is_row:
        yield from ((f"{path}: row {k}", entry) for k, entry in enumerate(lists[0], 1))
    else:
        yield f"{path}: row 1", whole


def jsonl_entries(path: Path, lines: IO[str], reject: Reject) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):  # cut at \n alone: U+2028 may stand inside of texts
        if line.strip():
            place = f"{path}:{number}"
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"not JSON: {error.msg} (column {error.colno}): {line.rstrip()[:80]!r}"
                reject(BadRow(place, problem, "not JSON"))
            except (RecursionError, ValueError) as error:  # nesting, or a number of thousands of digits
                reject(BadRow(place, f"not JSON: {error}", "not JSON"))
            else:
                yield place, entry


def delimiter_of(head: str) -> str | None:
    """What separates the columns, if the text begins like a table: names of columns, and as many values below."""
    first = head.partition("\n")[0].rstrip("\r")
    if first == "text":
        return ","
    for delimiter in sorted(",;\t", key=first.count, reverse=True):
        begin = next(csv.reader([first], delimiter=delimiter), [])
        if len(begin) < 2 or len(set(begin)) < len(begin) or not all(map(HEADER_FIELD.fullmatch, begin)):
            continue
        records = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
        try:
            following = [record for record, _ in zip(records, range(6), strict=False) if record][1:]
        except csv.Error:
            continue
        if sum(len(record) == len(begin) for record in following) * 2 >= len(following) > 0:
            return delimiter
    return None


def csv_entries(path: Path, lines: IO[str], delimiter: str, reject: Reject) -> Iterator[Entry]:
    csv.field_size_limit(sys.maxsize)
    records = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in next(records)]
    while True:
        place = f"{path}:{records.line_num + 1}"
        try:
            record = next(records, None)
        except csv.Error as error:
            reject(BadRow(place, f"not CSV: {error}", "not CSV"))
            continue
        if record is None:
            return
        if len(record) == len(header):
            yield place, {name: cell(value) for name, value in zip(header, record, strict=True)}
        elif record:
            problem = f"{len(record)} fields; the first line names {len(header)} columns"
            reject(BadRow(place, problem, "another number of fields than columns"))


def cell(value: str) -> Any:
    """Lists and objects stand in a table as JSON; everything else is text."""
    if value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def paragraph_entries(path: Path, lines: IO[str]) -> Iterator[Entry]:
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


def parquet_entries(path: Path) -> Iterator[Entry]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path} is a parquet file; to read it: pip install 'aurify[hub]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for entry in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", entry
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the parquet file cannot be read ({error}); write it anew") from error

"""Documents out of JSON lines and CSV: one column is the text, one the title, one the id, the others are metadata.

Lines are read one by one, and none longer than allowed is ever in memory.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aurify.bounds import Checked, PositiveInt
from aurify.knowledge.reading.encoding import detect_document_codec
from aurify.knowledge.reading.refusals import Refusals, Refused, clean_document_text
from aurify.knowledge.types import Document, Value
from aurify.rows.columns import ID, TEXT, TITLE

TEXTS = (*TEXT, "answer")
STEP = 1 << 20
DELIMITERS = ",;\t"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
BLANK = b"\xef\xbb\xbf \t\r\n"  # with the byte order mark

Rows = Iterator[tuple[int, "Mapping[str, Any] | str"]]  # line, and the row or why there is none


@dataclass(frozen=True)
class Columns:
    """What the columns of JSON lines or CSV are. None: the first of the usual names that a row has."""

    text: str | None = None
    title: str | None = None
    id: str | None = None  # without one, a row is named by its file and line
    metadata: tuple[str, ...] | None = None  # None: all other columns

    def choose(self, row: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
        text = self.text or next((name for name in TEXTS if isinstance(row.get(name), str)), None)
        title = self.title or next((name for name in TITLE if isinstance(row.get(name), str) and name != text), None)
        return text, title, self.id or next((name for name in ID if isinstance(row.get(name), str | int)), None)


@dataclass(frozen=True)
class ReadOptions(Checked):
    columns: Columns = field(default_factory=Columns)
    max_bytes: PositiveInt = 10_000_000  # of a text, unpacked; of a line of JSON lines or CSV


def parse_row_documents(
    file: io.BufferedReader[Any], name: str, prefix: str, options: ReadOptions, refusals: Refusals, *, is_table: bool
) -> Iterator[Document]:
    """`name` is the file's, for refusals and for rows without an id; `prefix` goes before the ids of rows."""
    columns, read = options.columns, read_csv_document_rows if is_table else read_json_document_rows
    for number, row in read(file, options.max_bytes):
        location = f"{name}:{number}"
        if isinstance(row, str):
            refusals.add(location, row)
        elif (document := build_row_document(row, location, prefix, columns)) is not None:
            yield document
        else:
            wanted = repr(columns.text) if columns.text else f"any of {', '.join(TEXTS)}"
            shown = f"{location}, with the columns {', '.join(map(repr, list(row)[:20]))}"
            refusals.add(shown, f"row without text in {wanted}: name the column with --text")


def read_json_document_rows(file: io.BufferedReader[Any], max_bytes: int) -> Rows:
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while (rest := file.readline(STEP)) and not rest.endswith(b"\n"):
                pass
            yield number, f"line of more than {max_bytes:,} bytes"
        elif line.strip(BLANK):
            yield number, parse_json_document_line(line)


def parse_json_document_line(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also text that is not UTF-8, numbers of thousands of digits
        return "line that is not JSON"
    return row if isinstance(row, dict) else "line that is not an object"


def read_csv_document_rows(file: io.BufferedReader[Any], max_bytes: int) -> Rows:
    """The first line names the columns and shows the delimiter. A quoted cell may have several lines; where one does
    not end, or a line is too long, it is not known where rows begin, and the rest is refused."""
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    lines = read_csv_document_lines(file, max_bytes)
    start, header = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (0, ""))
    delimiter = max(DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = start + reader.line_num + 1
        try:
            cells = next(reader, None)
        except (csv.Error, Refused) as error:
            yield number, str(error) if isinstance(error, Refused) else "CSV from a cell on that cannot be understood"
            return
        if cells is None:
            return
        if cells and len(cells) != len(names):
            yield number, "row with more or fewer cells than there are columns"
        elif any(cells):
            yield number, {name: cell for name, cell in zip(names, cells, strict=True) if cell}


def read_csv_document_lines(file: io.BufferedReader[Any], max_bytes: int) -> Iterator[str]:
    codec = ""
    if file.peek(2).startswith(UTF16):
        raise Refused("CSV in UTF-16: save it as UTF-8")
    while line := file.readline(max_bytes + 1):
        if len(line) > max_bytes:
            raise Refused(f"CSV from a line of more than {max_bytes:,} bytes on")
        try:
            text = line.decode()
        except UnicodeDecodeError:
            following = file.peek()
            codec = codec or detect_document_codec(line + following[: following.rfind(b"\n") + 1])
            text = line.decode(codec, "replace")
        yield text.removeprefix("\ufeff")


def build_row_document(row: Mapping[str, Any], location: str, prefix: str, columns: Columns) -> Document | None:
    text, title, key = columns.choose(row)
    if text is None or not isinstance(row.get(text), str):
        return None
    others = [name for name in row if name not in (text, title, key)] if columns.metadata is None else columns.metadata
    metadata = {
        clean_document_text(name): value for name in others if (value := to_metadata_value(row.get(name))) is not None
    }
    row_id = row.get(key) if key else None
    return Document(
        id=f"{prefix}{clean_document_text(str(row_id))}" if row_id not in (None, "") else location,
        text=clean_document_text(row[text]),
        title=clean_document_text(str(row.get(title) or "")) if title else "",
        metadata=metadata,
    )


def to_metadata_value(value: Any) -> Value | None:
    """Lists and objects are kept as JSON; what is absent or no number is left out."""
    if isinstance(value, str):
        return clean_document_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean_document_text(json.dumps(value, ensure_ascii=False))

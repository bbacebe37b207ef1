"""Rows of a table whose columns stand between commas, semicolons, tabs or bars, and those of plain text."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path
from typing import IO

from aurify.errors import UserError
from aurify.rows.json_text import Entries
from aurify.rows.row import BadRow

HEADER_FIELD = re.compile(r"[\w .:/()-]{1,60}")
DELIMITERS = ",;\t|"


def find_row_delimiter(head: str, suffix: str) -> str | None:
    """What separates the columns, if the text begins like a table: names of columns, and as many values below; or if
    the name of the file says that it is one."""
    first = head.partition("\n")[0].rstrip("\r")
    if first == "text":
        return ","
    for delimiter in sorted(DELIMITERS, key=first.count, reverse=True):
        names = first.split(delimiter)
        if len(names) > 1 and (suffix in (".csv", ".tsv") or begins_row_table(head, delimiter)):
            return delimiter
    return "," if suffix in (".csv", ".tsv") else None


def begins_row_table(head: str, delimiter: str) -> bool:
    records = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    try:
        names, *following = [record for record, _ in zip(records, range(6), strict=False) if record]
    except csv.Error:
        return False
    named = all(map(HEADER_FIELD.fullmatch, names[1:])) and (not names[0] or HEADER_FIELD.fullmatch(names[0]))
    if len(names) < 2 or len(set(names)) < len(names) or not named:
        return False
    return sum(len(record) == len(names) for record in following) * 2 >= len(following) > 0


def read_table_rows(path: Path, lines: IO[str], delimiter: str) -> Entries:
    """A first column without a name, in which pandas numbers the rows, is left out."""
    csv.field_size_limit(sys.maxsize)
    records = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in next(records)]
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}: two columns are named {twice[0]!r}; give each a name of its own")
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
            yield location, {name: value for name, value in zip(header, record, strict=True) if name}
        elif record:
            problem = f"{len(record)} fields; the first line names {len(header)} columns"
            mend = "put quotes around a text with commas or line breaks"
            yield location, BadRow(location, f"{problem}: {mend}", "another number of fields than columns")


def read_paragraph_rows(path: Path, lines: IO[str]) -> Entries:
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

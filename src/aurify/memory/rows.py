"""Documents out of JSON lines: one column is the text, one the title, one the id, the others are metadata.

Lines are read one by one, and none longer than allowed is ever in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from aurify.memory.reading import Refusals, clean
from aurify.memory.types import Document, Value

TEXTS = ("text", "content", "contents", "body", "passage", "answer")
TITLES = ("title", "name", "heading", "focus")
IDS = ("id", "_id", "doc_id", "docid", "uid")
STEP = 1 << 20


@dataclass(frozen=True)
class Columns:
    """What the columns of JSON lines are. None: the first of the usual names that a row has."""

    text: str | None = None
    title: str | None = None
    id: str | None = None  # without one, a row is named by its file and line
    metadata: tuple[str, ...] | None = None  # None: all other columns

    def choose(self, row: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
        text = self.text or next((name for name in TEXTS if isinstance(row.get(name), str)), None)
        title = self.title or next((name for name in TITLES if isinstance(row.get(name), str) and name != text), None)
        return text, title, self.id or next((name for name in IDS if isinstance(row.get(name), str | int)), None)


def read_rows(
    file: IO[bytes], name: str, prefix: str, columns: Columns, max_bytes: int, refusals: Refusals, source: str = ""
) -> Iterator[Document]:
    """`name` is the file's, for places and for rows without an id; `prefix` goes before the ids of rows."""
    for number, line in bounded_lines(file, max_bytes):
        place = f"{name}:{number}"
        if line is None:
            refusals.add(place, f"line of more than {max_bytes:,} bytes")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also text that is not UTF-8, numbers of thousands of digits
            refusals.add(place, "line that is not JSON")
            continue
        if not isinstance(row, dict):
            refusals.add(place, "line that is not an object")
            continue
        document = to_document(row, place, prefix, columns, source)
        if document is None:
            wanted = repr(columns.text) if columns.text else f"any of {', '.join(TEXTS)}"
            shown = f"{place}, with the columns {', '.join(map(repr, list(row)[:20]))}"
            refusals.add(shown, f"row without text in {wanted}: name the column with --text")
            continue
        yield document


def to_document(
    row: Mapping[str, Any], place: str, prefix: str, columns: Columns, source: str = ""
) -> Document | None:
    text, title, key = columns.choose(row)
    if text is None or not isinstance(row.get(text), str):
        return None
    others = [name for name in row if name not in (text, title, key)] if columns.metadata is None else columns.metadata
    metadata = {clean(name): value for name in others if (value := to_value(row.get(name))) is not None}
    row_id = row.get(key) if key else None
    return Document(
        id=f"{prefix}{clean(str(row_id))}" if row_id not in (None, "") else place,
        text=clean(row[text]),
        title=clean(str(row.get(title) or "")) if title else "",
        source=source,
        metadata=metadata,
    )


def to_value(value: Any) -> Value | None:
    """Lists and objects are kept as JSON; what is absent or no number is left out."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean(json.dumps(value, ensure_ascii=False))


def bounded_lines(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of lines that are not blank; None for one that is too long, of which no more is kept."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if len(line) <= max_bytes or line.endswith(b"\n"):
            if line.strip():
                yield number, line
            continue
        while (rest := file.readline(STEP)) and not rest.endswith(b"\n"):
            pass
        yield number, None

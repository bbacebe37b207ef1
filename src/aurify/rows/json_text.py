"""Rows written as JSON: one a line, a list, one object that holds a list, columns, or objects one after the other."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

from aurify.config import join_names
from aurify.errors import UserError
from aurify.rows.columns import CHAT, PROMPT
from aurify.rows.row import BadRow
from aurify.rows.values import MESSAGES, row_has_keys

Entries = Iterator[tuple[str, Any]]  # location, and what stands there; a BadRow where it cannot be read
ROW_COLUMNS = (*CHAT, *PROMPT, "chosen", "completions")  # an object with one of these is a row itself
BEGUN = re.compile(r'\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?')  # the first line of an object over several lines


def read_json_rows(path: Path, lines: IO[str], head: str) -> Entries:
    first, _, more = head.partition("\n")
    if first.startswith("["):
        return (
            read_json_list(path, lines)
            if not (more.strip() and is_complete_json(first))
            else read_json_lines(path, lines)
        )
    if not more.strip() or BEGUN.fullmatch(first.strip()):
        return read_json_object(path, lines.read())
    return read_json_lines(path, lines)


def is_complete_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_strict_json(text: str) -> Any:
    """Raises ValueError, also for a key that stands twice: one of its values would be lost."""
    return json.loads(text, object_pairs_hook=refuse_double_keys)


class RepeatedKey(ValueError):
    pass


def refuse_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKey(f"the key {twice!r} stands twice in one object")
    return values


def describe_json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    return f"not JSON: {str(error).partition(';')[0]}"  # nesting, a number of thousands of digits, a key twice


def read_json_lines(path: Path, lines: Iterable[str]) -> Entries:
    for number, line in enumerate(lines, 1):  # cut at \n alone: U+2028 may stand inside of texts
        if line.strip():
            location = f"{path}:{number}"
            try:
                yield location, parse_strict_json(line)
            except (ValueError, RecursionError) as error:
                kind = "a key that stands twice in one object" if isinstance(error, RepeatedKey) else "not JSON"
                yield location, BadRow(location, f"{describe_json_error(error)}: {line.rstrip()[:80]!r}", kind)


def read_json_list(path: Path, lines: IO[str]) -> Entries:
    try:
        entries = parse_strict_json(lines.read())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: {describe_json_error(error)}") from None
    return number_rows(path, entries)


def number_rows(path: Path, entries: list[Any]) -> Entries:
    return ((f"{path}: row {number}", entry) for number, entry in enumerate(entries, 1))


def read_json_object(path: Path, text: str) -> Entries:
    """One object: the rows that it holds, or a row by itself; or several objects, each over several lines. Other text
    is read line by line, so that the error names the line."""
    try:
        whole = parse_strict_json(text)
    except (ValueError, RecursionError):
        objects = read_json_objects(text)
        return number_rows(path, objects) if objects else read_json_lines(path, io.StringIO(text))
    if rows := transpose_row_columns(whole):
        return number_rows(path, rows)
    lists = {name: value for name, value in whole.items() if is_list_of_rows(value)}
    if lists and not any(name in whole for name in ROW_COLUMNS):
        if len(lists) > 1:
            raise UserError(f"{path}: the file holds several lists of rows ({join_names(lists)}); write each to a file")
        return number_rows(path, next(iter(lists.values())))
    return iter([(f"{path}: row 1" if "\n" in text.strip() else f"{path}:1", whole)])


def is_list_of_rows(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not row_has_keys(value[0], MESSAGES)
    )


def read_json_objects(text: str) -> list[Any]:
    """Objects one after the other; none where something else stands between them."""
    decoder, found, index = json.JSONDecoder(object_pairs_hook=refuse_double_keys), list[Any](), 0
    while rest := text[index:].lstrip(" \t\r\n,"):
        index = len(text) - len(rest)
        try:
            value, index = decoder.raw_decode(text, index)
        except (ValueError, RecursionError):
            return []
        found.append(value)
    return found if len(found) > 1 else []


def transpose_row_columns(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table that was written by its columns, as pandas ({"0": ..., "1": ...}) and datasets do; none for
    other objects."""
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and "0" in column for column in columns):
        names = list(dict.fromkeys(chain.from_iterable(columns)))
        return [{name: column.get(key) for name, column in whole.items()} for key in names]
    plain = all(isinstance(column, list) and column and not isinstance(column[0], dict) for column in columns)
    if len(columns) > 1 and plain and len({len(column) for column in columns}) == 1:
        return [dict(zip(whole, values, strict=True)) for values in zip(*columns, strict=True)]
    return []

"""What values in files are in disguise: conversations written as text, nulls that fill up structs, halves of
characters."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MESSAGES = ({"role"}, {"from"})  # keys that make an object a message
TURNS = (*MESSAGES, {"response"}, {"input", "output"})  # or an entry of a list of turns
SURROGATE = re.compile("[\ud800-\udfff]")
HALF = "half of a character (a lone surrogate)", "write the whole character, or remove it"
BROKEN = "bytes that are not UTF-8 text", "save the file as UTF-8, such as with: iconv -f CP1252 -t UTF-8"


def parse_json_value(value: Any) -> Any:
    """What a text holds as JSON, also if it was encoded twice; other values, and other texts, as they are."""
    for _ in range(3):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def parse_printed_value(text: str) -> Any:
    """What a text holds as Python prints it; other texts as they are."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def unpack_row_value(value: Any) -> Any:
    """The conversation, or the rated completions, that a text holds as JSON or as Python prints them, or that a list
    holds so, message by message. Other texts are text, even if they are JSON: an answer may be."""
    if isinstance(value, list) and value and all(is_packed_value(entry) for entry in value):
        found = list(map(parse_json_value, value))
    elif is_packed_value(value):
        found = parse_json_value(value)
        found = parse_printed_value(value) if found is value or isinstance(found, str) else found
    else:
        return value
    if isinstance(found, list) and found and all(row_has_keys(entry, TURNS) for entry in found):
        return found
    return found if row_has_keys(found, MESSAGES) else value


def is_packed_value(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[", "{", '"[', '"{'))


def row_has_keys(value: Any, choices: Sequence[set[str]]) -> bool:
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in choices)


def drop_nulls_in_objects(value: Any) -> Any:
    """Without the nulls in objects: a parquet file fills up what an object lacks and another one has."""
    if isinstance(value, Mapping):
        return {key: drop_nulls_in_objects(inner) for key, inner in value.items() if inner is not None}
    return list(map(drop_nulls_in_objects, value)) if isinstance(value, list) else value


def find_half_character(value: Any) -> tuple[str, str] | None:
    """What a text holds that is no whole character, and the mend; None where there is nothing."""
    if isinstance(value, str):
        found = SURROGATE.search(value)
        return None if found is None else BROKEN if "\udc80" <= found[0] <= "\udcff" else HALF
    if isinstance(value, Mapping):
        value = [inner for pair in value.items() for inner in pair]
    return next(filter(None, map(find_half_character, value)), None) if isinstance(value, list | tuple) else None

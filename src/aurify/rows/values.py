"""What values in files are in disguise: conversations written as text, nulls that fill up structs, halves of
characters."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

MESSAGES = ({"role"}, {"from"})  # keys that make an object a message
TURNS = (*MESSAGES, {"response"}, {"input", "output"})  # or an entry of a list of turns
HALF = "half of a character (a lone surrogate)"


def parse_json(value: Any) -> Any:
    """What a text holds as JSON, also if it was encoded twice; other values, and other texts, as they are."""
    for _ in range(3):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def unpack(value: Any) -> Any:
    """The conversation, or the rated completions, that a text holds as JSON or as Python prints them. Other texts are
    text, even if they are JSON: an answer may be."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", '"[', '"{')):
        return value
    found = parse_json(value)
    if found is value or isinstance(found, str):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    if isinstance(found, list) and found and all(has_keys(entry, TURNS) for entry in found):
        return found
    return found if has_keys(found, MESSAGES) else value


def has_keys(value: Any, choices: Sequence[set[str]]) -> bool:
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in choices)


def prune(value: Any) -> Any:
    """Without the nulls in objects: a parquet file fills up what an object lacks and another one has."""
    if isinstance(value, Mapping):
        return {key: prune(inner) for key, inner in value.items() if inner is not None}
    return list(map(prune, value)) if isinstance(value, list) else value


def has_half_character(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, Mapping):
        return any(has_half_character(inner) for pair in value.items() for inner in pair)
    return isinstance(value, list | tuple) and any(map(has_half_character, value))

"""Filters and maps over rows, by name: built-in ones, and a person's own functions registered by `@aurify.dataset`.

A filter takes a row and says whether it stays; a map takes a row and returns the new one. Both have `row` as first
parameter, which tells them from data sets; their other parameters are options.

    data: {path: rows.jsonl, filters: [{name: at_least, column: score, least: 4}], maps: [{name: rename, ...}]}
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from aurify import registry
from aurify.data.messages import SAID, SPEAKER, read_chat_role
from aurify.data.thoughts import find_thought_column
from aurify.errors import UserError
from aurify.rows.columns import COMPLETION
from aurify.rows.row import Row, Tally
from aurify.signatures import convert_call_options, report_crashes, split_options

ANSWERS = (*COMPLETION, "chosen", "rejected")
Entry = str | Mapping[str, Any]  # a registered function: its name, or {name: ..., options}


def resolve_row_filter(step: Literal["filter", "map"], entry: Entry) -> tuple[str, Callable[[Row], Any]]:
    """The name, and the function with its checked options."""
    name, given = split_options("dataset", entry)
    function = registry.get_entry("dataset", name)
    parameters = list(inspect.signature(function).parameters)
    if parameters[:1] != ["row"]:
        raise UserError(
            f"{step} {name!r}: {name} takes ({', '.join(parameters)}), so it is a data set; a {step} has `row` as its "
            "first parameter"
        )
    options = convert_call_options(f"{step} {name!r}", function, given, num_given=1)

    def run(row: Row) -> Any:
        with report_crashes(f"{step} {name!r} at {row.location}", function):
            return function(row, **options)

    return name, run


def apply_row_filters(
    rows: Iterable[Row], maps: Sequence[Entry], filters: Sequence[Entry], tally: Tally
) -> Iterator[Row]:
    """The rows after all maps, in their order, that all filters let pass. What a filter leaves out is counted."""
    changes = [resolve_row_filter("map", entry) for entry in maps]
    tests = [resolve_row_filter("filter", entry) for entry in filters]
    for row in rows:
        for name, change in changes:
            changed = change(row)
            if not isinstance(changed, Mapping):
                problem = f"gave a {type(changed).__name__}; it must return the row"
                raise UserError(f"map {name!r} at {row.location} {problem}")
            row = Row(changed, row.location, changes=row.changes)
        refused_by = next((name for name, stays in tests if not stays(row)), None)
        if refused_by is None:
            yield row
        else:
            tally.filtered[refused_by] += 1


# ---------------------------------------------------------------------- built-in filters


def at_least(row: Row, column: str, least: float) -> bool:
    """Keeps rows whose number in a column is at least `least`."""
    return need_column_number(row, column) >= least


def at_most(row: Row, column: str, most: float) -> bool:
    """Keeps rows whose number in a column is at most `most`."""
    return need_column_number(row, column) <= most


def equals(row: Row, column: str, value: Any) -> bool:
    """Keeps rows whose column has this value, or one of these."""
    return row.get(column) in (value if isinstance(value, list) else [value])


def matches(row: Row, column: str, pattern: str, without: bool = False) -> bool:
    """Keeps rows in whose column a regular expression is found; without: true keeps the others."""
    return bool(re.search(pattern, str(row.get(column, "")))) != without


# ---------------------------------------------------------------------- built-in maps


def rename(row: Row, columns: dict[str, str]) -> dict[str, Any]:
    """Renames columns: old name to new name. A column that has the new name already gives way."""
    kept = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
    return kept | {new: row[old] for old, new in columns.items() if old in row}


def drop(row: Row, columns: list[str]) -> dict[str, Any]:
    """Removes columns."""
    return {name: value for name, value in row.items() if name not in columns}


def rename_roles(row: Row, roles: dict[str, str]) -> dict[str, Any]:
    """Old role of a message -> new one, in every list of messages."""

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(entry) for entry in value]
        if not isinstance(value, Mapping):
            return value
        return {
            key: roles.get(old, old) if key in SPEAKER and isinstance(old, str) else old for key, old in value.items()
        }

    return {name: change(value) for name, value in row.items()}


def empty_thoughts(row: Row) -> dict[str, Any]:
    """Answers without a thought get an empty one, for chat templates that open a thought before each reply."""

    def think(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [think(entry, name) for entry in value]
        if isinstance(value, Mapping) and not find_thought_column(value):
            said = read_chat_role(value) == "assistant"
            return {key: think(text, "answer") if said and key in SAID else text for key, text in value.items()}
        is_answer = name in ANSWERS and isinstance(value, str) and value.strip() and "</think>" not in value
        return f"<think>\n\n</think>\n\n{value}" if is_answer else value

    return row if find_thought_column(row) else {name: think(value, name) for name, value in row.items()}


def margin_from_scores(
    row: Row, chosen: str = "score_chosen", rejected: str = "score_rejected", scale: float = 1.0
) -> dict[str, Any]:
    """The margin of a preference pair is how much better its chosen answer was rated."""
    return {**row, "margin": scale * (need_column_number(row, chosen) - need_column_number(row, rejected))}


def need_column_number(row: Row, column: str) -> float:
    value = row.number(column)
    if value is None:
        raise UserError(f"{row.location}: no column {column!r}, which a filter or map asks for, or nothing in it")
    return value

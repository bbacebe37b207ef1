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
from aurify.data.named import named
from aurify.data.sources import Row
from aurify.data.tally import Tally
from aurify.errors import UserError
from aurify.signatures import options_for, report_crashes

Step = Literal["filter", "map"]


def step_of(step: Step, entry: str | Mapping[str, Any]) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """Name, function and checked options."""
    name, options = named(entry)
    function = registry.get("dataset", name)
    parameters = list(inspect.signature(function).parameters)
    if parameters[:1] != ["row"]:
        raise UserError(
            f"{step} {name!r}: {name} takes ({', '.join(parameters)}), so it is a data set; a {step} has `row` as its "
            "first parameter"
        )
    return name, function, options_for(f"{step} {name!r}", function, options, num_given=1)


def apply_steps(
    rows: Iterable[Row],
    maps: Sequence[str | Mapping[str, Any]],
    filters: Sequence[str | Mapping[str, Any]],
    tally: Tally,
) -> Iterator[Row]:
    """The rows after all maps, in their order, that all filters let pass. What a filter leaves out is counted."""
    changes = [step_of("map", entry) for entry in maps]
    tests = [step_of("filter", entry) for entry in filters]
    for row in rows:
        for name, function, options in changes:
            with report_crashes(f"map {name!r} at {row.place}", function):
                changed = function(row, **options)
            if not isinstance(changed, Mapping):
                raise UserError(f"map {name!r} at {row.place} gave a {type(changed).__name__}; it must return the row")
            row = Row(changed, row.place, row.part)
        for name, function, options in tests:
            with report_crashes(f"filter {name!r} at {row.place}", function):
                stays = function(row, **options)
            if not stays:
                tally.filtered[name] += 1
                break
        else:
            yield row


# ---------------------------------------------------------------------- built-in filters


def at_least(row: Row, column: str, least: float) -> bool:
    """The number in a column is not smaller."""
    return number(row, column) >= least


def at_most(row: Row, column: str, most: float) -> bool:
    return number(row, column) <= most


def equals(row: Row, column: str, value: Any) -> bool:
    """The value of a column is this one, or one of these."""
    return row.get(column) in (value if isinstance(value, list) else [value])


def matches(row: Row, column: str, pattern: str, without: bool = False) -> bool:
    """A regular expression is found in the text of a column; without: it is not."""
    return bool(re.search(pattern, str(row.get(column, "")))) != without


# ---------------------------------------------------------------------- built-in maps


def rename(row: Row, columns: dict[str, str]) -> dict[str, Any]:
    """Old name -> new name. A column that has the new name already gives way."""
    kept = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
    return kept | {new: row[old] for old, new in columns.items() if old in row}


def margin_from_scores(
    row: Row, chosen: str = "score_chosen", rejected: str = "score_rejected", scale: float = 1.0
) -> dict[str, Any]:
    """The margin of a preference pair is how much better its chosen answer was rated."""
    return {**row, "margin": scale * (number(row, chosen) - number(row, rejected))}


def number(row: Row, column: str) -> float:
    try:
        return float(row[column])
    except KeyError:
        raise UserError(f"{row.place}: no column {column!r}, which a filter or map asks for") from None
    except (TypeError, ValueError):
        raise UserError(f"{row.place}: column {column!r} is {str(row[column])[:40]!r}; expected a number") from None

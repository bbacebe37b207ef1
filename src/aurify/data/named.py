"""Rows out of a person's own function, registered by `@aurify.dataset` and asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurify import registry
from aurify.data.sources import Row
from aurify.errors import UserError
from aurify.signatures import call, options_for, report_crashes


def load_dataset(entry: str | Mapping[str, Any]) -> list[Row]:
    """entry: a name, or {name: ..., options of it}. A row's place is its number in what the function gave."""
    name, options = named(entry)
    function = registry.get("dataset", name)
    result = call(f"dataset {name!r}", function, options)
    with report_crashes(f"dataset {name!r}", function):  # a generator runs, and fails, only now
        if isinstance(result, str | Mapping) or not hasattr(result, "__iter__"):
            raise UserError(f"dataset {name!r} gave a {type(result).__name__}; it must return rows, or yield them")
        rows = list(result)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"dataset {name!r}: row {number} is a {type(row).__name__}; a row is a mapping of columns to values"
            )
    if not rows:
        raise UserError(f"dataset {name!r} gave no rows")
    return [Row(row, f"dataset {name!r}: row {number}") for number, row in enumerate(rows, 1)]


def check_dataset(entry: str | Mapping[str, Any]) -> None:
    """What can be seen without calling the function: its name, and names and types of the options."""
    name, options = named(entry)
    options_for(f"dataset {name!r}", registry.get("dataset", name), options)


def named(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    if not isinstance(options.get("name"), str):
        raise UserError(f"dataset {entry!r}: expected a name, or {{name: ..., options}}")
    return options.pop("name"), options

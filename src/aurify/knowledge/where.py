"""Conditions on metadata: {"year": 2024}, {"topic": ["heart", "lung"]}, {"year": {">=": 2020, "<": 2024}}.

All conditions must hold; a list means any of its values. Numbers are compared as numbers, all else as text; what a
document does not have never matches. Beside its metadata, "document.id", "document.source", "document.format" and
"chunk.kind" can be asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.types import Metadata, Value

Where = Mapping[str, Value | Sequence[Value] | Mapping[str, Value]]
COLUMNS = {"document.id": "document", "document.source": "source", "document.format": "format", "chunk.kind": "kind"}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def to_sql(where: Where | None) -> str | None:
    """For a table with the column `metadata` in JSON; None lets everything through."""
    clauses = []
    for key, comparisons in parsed(where):
        column = COLUMNS.get(key) or f"json_get_string(metadata, {quoted(key)})"
        one_of = [f"{cast_for(value, column)} {sign} {literal(value)}" for sign, value in comparisons]
        clauses.append(f"({joined(where, key, one_of)})")
    return " AND ".join(clauses) or None


def matches(where: Where | None, metadata: Metadata, columns: Mapping[str, str] | None = None) -> bool:
    """The same in Python; `columns` holds what stands beside the metadata, under the names above."""
    for key, comparisons in parsed(where):
        held = (columns or {}).get(key) if key in COLUMNS else metadata.get(key)
        results = [held is not None and holds(held, sign, value) for sign, value in comparisons]
        if not (all if isinstance((where or {})[key], Mapping) else any)(results):
            return False
    return True


def parsed(where: Where | None) -> Iterator[tuple[str, list[tuple[str, Value]]]]:
    """(key, [(operator, value)]); checked."""
    for key, wanted in (where or {}).items():
        if isinstance(wanted, Mapping):
            pairs = list(wanted.items())
        elif isinstance(wanted, str) or not isinstance(wanted, Sequence):
            pairs = [("=", wanted)]
        else:
            pairs = [("=", value) for value in wanted]
        for sign, value in pairs:
            if sign not in OPERATORS or not isinstance(value, (str, int, float)):
                raise UserError(
                    f"where: {key!r} is {wanted!r}; expected a text, number or boolean, a list of them (any of them), "
                    f"or a mapping such as {{'>=': 2020}} with {', '.join(OPERATORS)}"
                )
        yield key, pairs


def joined(where: Where | None, key: str, clauses: list[str]) -> str:
    """Comparisons of a mapping must all hold; of a list, one. Of an empty list, none does."""
    ranges = isinstance((where or {})[key], Mapping)
    return (" AND " if ranges else " OR ").join(clauses) or ("true" if ranges else "false")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def cast_for(value: Value, column: str) -> str:
    return f"TRY_CAST({column} AS DOUBLE)" if is_number(value) else column


def literal(value: Value) -> str:
    if isinstance(value, bool):
        return quoted(str(value).lower())
    return quoted(value) if isinstance(value, str) else repr(float(value))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def holds(held: Value, sign: str, value: Value) -> bool:
    if is_number(value):
        try:
            return OPERATORS[sign](float(held), float(value)) and not isinstance(held, bool)
        except ValueError:
            return False
    return OPERATORS[sign](as_text(held), as_text(value))


def as_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

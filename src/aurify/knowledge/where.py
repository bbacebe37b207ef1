"""Conditions on metadata: {"year": 2024}, {"topic": ["heart", "lung"]}, {"year": {">=": 2020, "<": 2024}}.

All conditions must hold; a list means any of its values. Numbers are compared as numbers, all else as text; a document
without the key never matches. Beside its metadata, "document.id", "document.source", "document.format" and
"chunk.kind" can be asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.types import Metadata, Value, Where

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
    for key, comparisons, join in parse(where):
        column = COLUMNS.get(key) or f"json_get_string(metadata, {quote(key)})"
        tests = [f"{cast(column, value)} {sign} {to_literal(value)}" for sign, value in comparisons]
        clauses.append(f"({(' AND ' if join is all else ' OR ').join(tests) or str(join([])).lower()})")
    return " AND ".join(clauses) or None


def matches(where: Where | None, metadata: Metadata, columns: Mapping[str, str]) -> bool:
    """The same in Python; `columns` holds what stands beside the metadata, under the names above."""
    for key, comparisons, join in parse(where):
        held = columns.get(key) if key in COLUMNS else metadata.get(key)
        if not join(held is not None and compare(held, sign, value) for sign, value in comparisons):
            return False
    return True


def parse(where: Where | None) -> Iterator[tuple[str, list[tuple[str, Value]], Callable[..., bool]]]:
    """(key, [(operator, value)], all or any): all comparisons of a mapping must hold, and any of a list."""
    for key, wanted in (where or {}).items():
        if isinstance(wanted, Mapping):
            comparisons = list(wanted.items())
        elif isinstance(wanted, str) or not isinstance(wanted, Sequence):
            comparisons = [("=", wanted)]
        else:
            comparisons = [("=", value) for value in wanted]
        for sign, value in comparisons:
            if sign not in OPERATORS or not isinstance(value, (str, int, float)):
                raise UserError(
                    f"where: {key!r} is {wanted!r}; expected a text, number or boolean, a list of them (any of them), "
                    f"or a mapping such as {{'>=': 2020}} with {', '.join(OPERATORS)}"
                )
        yield key, comparisons, all if isinstance(wanted, Mapping) else any


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def cast(column: str, value: Value) -> str:
    return f"TRY_CAST({column} AS DOUBLE)" if is_number(value) else column


def to_literal(value: Value) -> str:
    return repr(float(value)) if is_number(value) else quote(to_text(value))


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def compare(held: Value, sign: str, value: Value) -> bool:
    if not is_number(value):
        return OPERATORS[sign](to_text(held), to_text(value))
    try:
        return not isinstance(held, bool) and OPERATORS[sign](float(held), float(value))
    except ValueError:
        return False


def to_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

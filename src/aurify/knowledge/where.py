"""Conditions on metadata: {"year": 2024}, {"topic": ["heart", "lung"]}, {"year": {">=": 2020, "<": 2024}}.

All conditions must hold; a list means any of its values. Numbers are compared as numbers, all else as text; a document
without the key never matches. Beside its metadata, "document.id", "document.source", "document.format" and
"chunk.kind" can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.types import Value, Where

COLUMNS = {"document.id": "document", "document.source": "source", "document.format": "format", "chunk.kind": "kind"}
OPERATORS = ("=", "!=", "<", "<=", ">", ">=")


def where_to_sql(where: Where | None) -> str | None:
    """For a table with the column `metadata` in JSON; None lets everything through."""
    clauses = []
    for key, wanted in (where or {}).items():
        column = COLUMNS.get(key) or f"json_get_string(metadata, {quote_sql(key)})"
        tests = [to_sql_comparison(column, sign, value) for sign, value in parse_where_comparisons(key, wanted)]
        ranges = isinstance(wanted, Mapping)  # all of its comparisons must hold, and any of a list
        clauses.append(f"({(' AND ' if ranges else ' OR ').join(tests) or str(ranges).lower()})")
    return " AND ".join(clauses) or None


def parse_where_comparisons(key: str, wanted: Any) -> list[tuple[str, Value]]:
    """(operator, value) of each comparison."""
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
    return comparisons


def to_sql_comparison(column: str, sign: str, value: Value) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, str):
        return f"{column} {sign} {quote_sql(value)}"
    return f"TRY_CAST({column} AS DOUBLE) {sign} {float(value)!r}"


def quote_sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

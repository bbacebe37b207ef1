"""The rows of a rollout as one sequence, for what is counted or summed over the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from aurify.types import Datum

STREAMS = ("weights", "advantages", "logprobs", "old_logprobs", "ref_logprobs", "guided")


def join_rollout_units(data: Sequence[Datum]) -> list[Datum]:
    """A datum for each rollout: its rows, one after the other. Rows of a unit stand next to each other."""
    units = groupby(enumerate(data), key=lambda pair: pair[1].unit if pair[1].unit >= 0 else -1 - pair[0])
    return [join_rollout_rows([datum for _, datum in rows]) for _, rows in units]


def join_rollout_rows(rows: Sequence[Datum]) -> Datum:
    if len(rows) == 1:
        return rows[0]
    streams = {name: [getattr(row, name) for row in rows] for name in STREAMS}
    known: dict[str, Any] = {
        name: None if None in parts else [x for part in parts for x in part] for name, parts in streams.items()
    }
    return replace(rows[0], tokens=[token for row in rows for token in row.tokens], **known)


def split_rollout_advantages(data: Sequence[Datum], joined: Sequence[Datum]) -> list[Datum]:
    """`data` with the advantages of the rollouts that `join_rollout_units` made of them."""
    values = iter([value for datum in joined for value in datum.advantages or ()])
    return [replace(datum, advantages=[next(values) for _ in datum.tokens]) for datum in data]

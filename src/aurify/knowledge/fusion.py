"""Makes one of several ranked lists: by reciprocal ranks (Cormack et al., 2009), or by a weighted sum of scores on one
scale (Bruch et al., 2022, who find it the better of the two once its weight is tuned).

A list holds (key, score), best first. Ties are broken by the better single rank, then by the key, so that the same
lists always give the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", int, str)
Lists = Mapping[str, Sequence[tuple[K, float]]]

LOWEST = {"dense": -1.0, "bm25": 0.0}  # the scores that mean "nothing in common"


def fuse_ranks(lists: Lists[K], weights: Mapping[str, float] | None = None, k: float = 60) -> list[tuple[K, float]]:
    """Sum over lists of weight / (k + rank), ranks from 1; a list without a key adds nothing. The sum is at most
    sum(weights) / (k + 1), about 0.016 a list: never add it to another kind of score."""
    parts = {name: [(key, 1 / (k + rank)) for rank, (key, _) in enumerate(ranked, 1)] for name, ranked in lists.items()}
    return sum_fused_scores(parts, weights)


def fuse_scores(lists: Lists[K], weights: Mapping[str, float] | None = None) -> list[tuple[K, float]]:
    """Sum over lists of weight x score, each list's scores brought from [lowest possible, best found] to [0, 1]; a list
    without a key adds nothing."""
    parts = {}
    for name, ranked in lists.items():
        scores = [score for _, score in ranked]
        low = LOWEST.get(name, min(scores, default=0.0))
        span = max(scores, default=0.0) - low
        parts[name] = [(key, (score - low) / span if span > 0 else 0.0) for key, score in ranked]
    return sum_fused_scores(parts, weights)


def sum_fused_scores(
    parts: Mapping[str, Iterable[tuple[K, float]]], weights: Mapping[str, float] | None
) -> list[tuple[K, float]]:
    totals: dict[K, float] = {}
    best_rank: dict[K, int] = {}
    for name, part in parts.items():
        weight = 1.0 if weights is None else weights.get(name, 0.0)
        for rank, (key, value) in enumerate(part):
            totals[key] = totals.get(key, 0.0) + weight * value
            best_rank[key] = min(rank, best_rank.get(key, rank))
    return sorted(totals.items(), key=lambda item: (-item[1], best_rank[item[0]], item[0]))

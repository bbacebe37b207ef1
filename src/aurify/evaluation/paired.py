"""Two models on the same questions. Differences of pairs have a far smaller error than the difference of two means:
what is hard for one model is mostly hard for the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aurify.evaluation.evaluate import estimate_mean

SAME = 1e-9  # values that differ by less are the same


@dataclass(frozen=True)
class Comparison:
    """`difference` is what the second model earns more than the first, on average over tasks."""

    difference: float
    error: float  # standard error of the differences of pairs
    num: int  # tasks
    num_better: int  # tasks on which the second model earns more
    num_worse: int
    p: float  # of the sign test

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


def compare_paired(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """What two models earn on each task, the tasks in the same order."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = estimate_mean(differences)
    num_better = sum(difference > SAME for difference in differences)
    num_worse = sum(difference < -SAME for difference in differences)
    return Comparison(mean.value, mean.error, mean.num, num_better, num_worse, run_sign_test(num_better, num_worse))


def run_sign_test(num_better: int, num_worse: int) -> float:
    """Two-sided and exact: how likely a split at least as uneven is where either model is as likely to be the better
    one. Ties are left out. Of answers that are right or wrong this is McNemar's exact test."""
    num = num_better + num_worse
    tail = sum(math.comb(num, k) for k in range(min(num_better, num_worse) + 1))
    return min(1.0, 2 * tail / 2**num)

"""Advantage estimators: from the rewards of groups to one number a trajectory. Pure functions on lists; None is a
reward that does not apply, and gets advantage 0 without touching the baseline of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Rewards = Sequence[float | None]
Scale = Literal["group", "none", "batch"]
EPSILON = 1e-4  # beside the standard deviation, as in TRL


def spread(rewards: Rewards) -> bool:
    """Whether a group says anything: two valid rewards that differ."""
    valid = [reward for reward in rewards if reward is not None]
    return bool(valid) and min(valid) < max(valid)


def center(rewards: Rewards) -> list[float]:
    """r - mean of the group (Dr. GRPO, arXiv 2503.20783). Exactly 0 without spread, whatever rounding says."""
    if not spread(rewards):
        return [0.0] * len(rewards)
    valid = [reward for reward in rewards if reward is not None]
    mean = math.fsum(valid) / len(valid)
    return [0.0 if reward is None else reward - mean for reward in rewards]


def deviation(rewards: Rewards) -> float:
    """Unbiased standard deviation (divisor n - 1) of the valid rewards; 0 for fewer than two."""
    valid = [reward for reward in rewards if reward is not None]
    if len(valid) < 2:
        return 0.0
    mean = math.fsum(valid) / len(valid)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in valid) / (len(valid) - 1))


def group_advantages(groups: Sequence[Rewards], scale: Scale) -> list[list[float]]:
    """Centred on the group, then divided by the deviation of the group (GRPO, arXiv 2402.03300), of all rewards of
    the step ("batch"), or by nothing."""
    whole = deviation([reward for group in groups for reward in group]) if scale == "batch" else 0.0
    advantages = []
    for group in groups:
        divisor = 1.0 if scale == "none" else (whole if scale == "batch" else deviation(group)) + EPSILON
        advantages.append([value / divisor for value in center(group)])
    return advantages

"""Advantage estimators: from the rewards of groups to one number a trajectory. Pure functions on lists; None is a
reward that does not apply, and gets advantage 0 without touching the baseline of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Rewards = Sequence[float | None]
Scale = Literal["group", "none", "batch"]
EPSILON = 1e-4  # beside the standard deviation, as in TRL


def has_reward_spread(rewards: Rewards) -> bool:
    """Whether a group says anything: two valid rewards that differ."""
    valid = [reward for reward in rewards if reward is not None]
    return bool(valid) and min(valid) < max(valid)


def center_rewards(rewards: Rewards) -> list[float]:
    """r - mean of the group (Dr. GRPO, arXiv 2503.20783). Exactly 0 without spread, whatever rounding says."""
    if not has_reward_spread(rewards):
        return [0.0] * len(rewards)
    valid = [reward for reward in rewards if reward is not None]
    mean = math.fsum(valid) / len(valid)
    return [0.0 if reward is None else reward - mean for reward in rewards]


def reward_deviation(rewards: Rewards) -> float:
    """Unbiased standard deviation (divisor n - 1) of the valid rewards; 0 for fewer than two."""
    valid = [reward for reward in rewards if reward is not None]
    if len(valid) < 2:
        return 0.0
    mean = math.fsum(valid) / len(valid)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in valid) / (len(valid) - 1))


def group_advantages(groups: Sequence[Rewards], scale: Scale) -> list[list[float]]:
    """Centred on the group, then divided by the deviation of the group (GRPO, arXiv 2402.03300), of all rewards of
    the step ("batch"), or by nothing."""
    whole = reward_deviation([reward for group in groups for reward in group]) if scale == "batch" else 0.0
    advantages = []
    for group in groups:
        divisor = 1.0 if scale == "none" else (whole if scale == "batch" else reward_deviation(group)) + EPSILON
        advantages.append([value / divisor for value in center_rewards(group)])
    return advantages


def leave_one_out(rewards: Rewards) -> list[float]:
    """r_i - mean of the other valid rewards (RLOO, arXiv 2402.14740): the centred reward times n / (n - 1)."""
    num = sum(reward is not None for reward in rewards)
    return [value * num / max(1, num - 1) for value in center_rewards(rewards)]


def whiten_advantages(groups: Sequence[Rewards], lengths: Sequence[Sequence[int]]) -> list[list[float]]:
    """(r - mean) / deviation over all tokens of the step, each of which carries its trajectory's reward."""
    pairs = [
        (reward, length)
        for group, row in zip(groups, lengths, strict=True)
        for reward, length in zip(group, row, strict=True)
        if reward is not None
    ]
    total = sum(length for _, length in pairs)
    if total < 2 or not has_reward_spread([reward for reward, length in pairs if length]):
        return [[0.0] * len(group) for group in groups]
    mean = math.fsum(reward * length for reward, length in pairs) / total
    scale = math.sqrt(math.fsum(length * (reward - mean) ** 2 for reward, length in pairs) / (total - 1))
    return [[0.0 if reward is None else (reward - mean) / (scale + EPSILON) for reward in group] for group in groups]

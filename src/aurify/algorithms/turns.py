"""One advantage a turn instead of one a rollout (`credit: turn`), for environments that reward single turns.

    G_t = r_t + discount G_t+1,      A_t = (G_t - mean) / (deviation | nothing)

r_t is what the environment gave in turn t. The last turn has, beside its own, what was earned by the whole: the rubric,
`finish` and a penalty of truncation. Returns are those of GTPO (arXiv 2511.14846), MARSHAL (arXiv 2510.15414) and Kevin
(arXiv 2507.11948, which found 0.4 a good discount). Mean and deviation are over the rollouts of the group, each with
the mean of its own turns, so that a rollout of many turns counts once; with discount 1 and nothing but a reward of the
whole, every turn has the advantage that the rollout has in GRPO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean

from aurify.algorithms.estimators import EPSILON, Scale
from aurify.types import Group, Trajectory


def count_turns(trajectory: Trajectory) -> int:
    """A prompt, or the environment, comes before each; what it said last may be before none."""
    turns, began = 0, False
    for segment in trajectory.segments:
        writes = segment.origin in ("policy", "guidance")
        turns += writes and not began
        began = writes
    return turns


def turn_returns(trajectory: Trajectory, judged: Mapping[str, float], discount: float) -> list[float]:
    """judged: the names that the rubric gave; what an environment gave under them does not count. A trajectory without
    a reward has returns of 0."""
    num = count_turns(trajectory)
    if trajectory.reward is None or not num:
        return [0.0] * num
    known = {name for name, value in trajectory.rewards.items() if value is not None and name not in judged}
    turns = [turn.rewards for turn in trajectory.turns] or [{}] * num  # replayed ones have forgotten their turns
    given = [math.fsum(value or 0.0 for name, value in rewards.items() if name in known) for rewards in turns]
    given[-1] += trajectory.reward - math.fsum(given)
    returns = list(accumulate(reversed(given), lambda later, own: own + discount * later))
    return returns[::-1]


def turn_advantages(groups: Sequence[Group], scale: Scale, discount: float) -> list[list[list[float]]]:
    """[groups][trajectories][turns]"""
    returns = [[turn_returns(t, group.reward_weights, discount) for t in group.trajectories] for group in groups]
    known = [
        [row for row, t in zip(rows, group.trajectories, strict=True) if t.reward is not None and row]
        for rows, group in zip(returns, groups, strict=True)
    ]
    whole = turn_return_deviation([row for rows in known for row in rows]) if scale == "batch" else 0.0
    result = []
    for group, rows, valid in zip(groups, returns, known, strict=True):
        values = [value for row in valid for value in row]
        flat = not values or min(values) == max(values)
        mean = 0.0 if flat else fmean(fmean(row) for row in valid)
        divisor = 1.0 if scale == "none" else (whole if scale == "batch" else turn_return_deviation(valid)) + EPSILON
        silent = [flat or t.reward is None for t in group.trajectories]
        pairs = zip(rows, silent, strict=True)
        result.append([[0.0 if quiet else (value - mean) / divisor for value in row] for row, quiet in pairs])
    return result


def turn_return_deviation(rows: Sequence[Sequence[float]]) -> float:
    """Unbiased over rollouts (divisor n - 1), each with the mean over its turns; 0 for fewer than two."""
    if len(rows) < 2:
        return 0.0
    mean = fmean(fmean(row) for row in rows)
    return math.sqrt(math.fsum(fmean((value - mean) ** 2 for value in row) for row in rows) / (len(rows) - 1))

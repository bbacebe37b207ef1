"""GDPO (arXiv 2601.05242): where there are several rewards, each is normalised in its group before they are added up;
otherwise the one that varies most drowns the others. The sums are then normalised over the step.

    z_k = (r_k - mean of the group) / (deviation of the group + e),   A = normalised over the step (sum of w_k z_k)

w_k is the reward's weight in the rubric, as in TRL and the specification, or that of `weights` where a name stands
there: a reward of weight 0 is told and not trained, one of negative weight counts the other way round. What an
environment gave weighs 1, and so does the penalty of `truncated: penalise`, which is one reward among the others here.
`combine_rewards` of the stage would combine them before; it is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.estimators import EPSILON, group_advantages, reward_deviation
from aurify.algorithms.grpo import GRPO
from aurify.errors import UserError
from aurify.types import Group


@dataclass(frozen=True)
class GDPO(GRPO):
    # of rewards, by name; those of the rubric where none is given
    weights: dict[str, float] = field(default_factory=dict)

    sums_rewards: ClassVar[bool] = False
    effects: ClassVar[Effects] = dict.fromkeys(("scale", "credit", "discount"), NEVER)

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        names = sorted({name for group in groups for t in group.trajectories for name in t.rewards})
        if unknown := sorted(set(self.weights) - set(names)):
            raise UserError(f"gdpo.weights: there is no reward {unknown[0]!r}; the rewards are {', '.join(names)}")
        sums = [self.sums(group, names) for group in groups]
        flat = [value for row in sums for value in row]
        valid = [value for value in flat if value is not None]
        mean, scale = math.fsum(valid) / max(1, len(valid)), reward_deviation(flat) + EPSILON
        return [[0.0 if v is None or not any(row) else (v - mean) / scale for v in row] for row in sums]

    def sums(self, group: Group, names: Sequence[str]) -> list[float | None]:
        """One for each trajectory; None where no reward applies. All 0 where no reward has spread."""
        weights = {name: self.weights.get(name, group.reward_weights.get(name, 1.0)) for name in names}
        total: list[float] = [0.0] * len(group.trajectories)
        for name in (name for name in names if weights[name]):
            [column] = group_advantages([[t.rewards.get(name) for t in group.trajectories]], "group")
            total = [t + weights[name] * z for t, z in zip(total, column, strict=True)]
        return [None if reward is None else value for reward, value in zip(group.rewards, total, strict=True)]

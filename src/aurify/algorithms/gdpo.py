"""GDPO (arXiv 2601.05242): where there are several rewards, each is normalised in its group before they are added up;
otherwise the one that varies most drowns the others. The sums are then normalised over the step.

    z_k = (r_k - mean of the group) / (deviation of the group + e),   A = normalised over the step (sum of w_k z_k)

`weights` are by reward name, 1 where absent: a reward's weight in the rubric scales r_k, and does nothing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aurify.algorithms.estimators import EPSILON, deviation, group_advantages
from aurify.algorithms.grpo import GRPO
from aurify.errors import UserError
from aurify.types import Group


@dataclass(frozen=True)
class GDPO(GRPO):
    weights: dict[str, float] = field(default_factory=dict)

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        names = sorted({name for group in groups for t in group.trajectories for name in t.rewards})
        if unknown := sorted(set(self.weights) - set(names)):
            raise UserError(f"gdpo.weights: there is no reward {unknown[0]!r}; the rewards are {', '.join(names)}")
        sums = [self.sums(group, names) for group in groups]
        flat = [value for row in sums for value in row]
        valid = [value for value in flat if value is not None]
        mean, scale = math.fsum(valid) / max(1, len(valid)), deviation(flat) + EPSILON
        return [[0.0 if v is None or not any(row) else (v - mean) / scale for v in row] for row in sums]

    def sums(self, group: Group, names: Sequence[str]) -> list[float | None]:
        """One for each trajectory; None where no reward applies. All 0 where no reward has spread."""
        total: list[float] = [0.0] * len(group.trajectories)
        for name in names:
            [column] = group_advantages([[t.rewards.get(name) for t in group.trajectories]], "group")
            total = [t + self.weights.get(name, 1.0) * z for t, z in zip(total, column, strict=True)]
        return [None if reward is None else value for reward, value in zip(group.rewards, total, strict=True)]

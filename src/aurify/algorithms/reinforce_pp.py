"""REINFORCE++ (arXiv 2501.03262): rewards are normalised over all tokens of the step instead of over groups, so that a
group may have one answer. With `baseline` the mean of the group is taken off first, and no group's own deviation is
divided by. A KL penalty goes into the loss (kl_coef with k2 is the paper's choice for the baseline form)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aurify.algorithms.estimators import center, whiten
from aurify.algorithms.grpo import GRPO
from aurify.types import Group


@dataclass(frozen=True)
class ReinforcePP(GRPO):
    baseline: bool = False

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        lengths = [[t.num_policy_tokens for t in group.trajectories] for group in groups]
        rewards = [self.compared(group.rewards) for group in groups]
        return whiten(rewards, lengths)

    def compared(self, rewards: Sequence[float | None]) -> list[float | None]:
        if not self.baseline:
            return list(rewards)
        return [None if r is None else c for r, c in zip(rewards, center(rewards), strict=True)]

"""REINFORCE leave-one-out (arXiv 2402.14740): each answer is compared with the mean of the others of its group, and a
sequence's log-probs are summed, not averaged:

    A_i = r_i - mean of r_j, j != i,      loss = -sum over its tokens of rho A

A KL penalty goes into the loss (kl_coef); TRL's trainer takes it off the reward, and clips a ratio of whole sequences,
which one update a rollout never reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aurify.algorithms.estimators import leave_one_out
from aurify.algorithms.grpo import GRPO
from aurify.types import Group


@dataclass(frozen=True)
class RLOO(GRPO):
    surrogate: Literal["clip", "plain"] = "plain"
    aggregator: Literal["token", "sequence", "constant"] = "constant"
    constant_length: int | None = 1  # sums over tokens

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        return [leave_one_out(group.rewards) for group in groups]

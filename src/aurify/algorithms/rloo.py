"""REINFORCE leave-one-out (arXiv 2402.14740): each answer is compared with the mean of the others of its group, and a
sequence's log-probs are summed, not averaged:

    A_i = r_i - mean of r_j, j != i,      loss = -sum over its tokens of rho A

A KL penalty goes into the loss (kl_coef) or, as in the paper and in TRL's trainer, is taken off the reward:
r_i - reward_kl_coef * sum over its tokens of log pi_old - log pi_ref. TRL clips a ratio of whole sequences, which one
update a rollout never reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.estimators import leave_one_out
from aurify.algorithms.reward_kl import RewardKL, log_ratios
from aurify.types import Datum, Group


@dataclass(frozen=True)
class RLOO(RewardKL):
    surrogate: Literal["clip", "plain"] = "plain"
    aggregator: Literal["token", "sequence", "constant"] = "constant"
    constant_length: int | None = 1  # sums over tokens

    effects: ClassVar[Effects] = dict.fromkeys(("scale", "credit", "discount"), NEVER)

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        return [leave_one_out(group.rewards) for group in groups]

    def penalised(self, rewards: Sequence[Sequence[float]], groups: Sequence[Sequence[Datum]]) -> list[list[Datum]]:
        coef, result = self.reward_kl_coef, []
        for row, group in zip(rewards, groups, strict=True):
            left = [r - coef * math.fsum(log_ratios(datum)) for r, datum in zip(row, group, strict=True)]
            pairs = zip(group, leave_one_out(left), strict=True)
            result.append([replace(datum, advantages=[value] * len(datum.tokens)) for datum, value in pairs])
        return result

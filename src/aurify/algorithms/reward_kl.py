"""A KL penalty in the reward, the classical form of RLHF, for the methods that take it there: every token that the
policy wrote costs

    coef (log pi_old - log pi_ref)

which is taken off the reward *before* advantages are computed from it. It has no gradient, and depends on the policy
that sampled alone, unlike `kl_coef`, whose term is part of the loss. What a guide wrote costs nothing. Also groups
whose answers all earned the same teach now, by what they cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, ClassVar

from aurify.algorithms.effects import Effect, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import Ge
from aurify.types import Datum, Metrics, Need


@dataclass(frozen=True)
class RewardKL(GRPO, ABC):
    reward_kl_coef: Annotated[float, Ge(0), "0.05 is usual, 0 is off"] = 0.0  # weight of the KL inside the reward

    effects: ClassVar[Effects] = {
        "flat_groups": Effect(
            lambda a: not a.reward_kl_coef, "without reward_kl_coef, by whose cost every group has a spread"
        ),
    }

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | ({"old_logprobs", "ref_logprobs"} if self.reward_kl_coef else set())

    def keeps_flat(self, advantages: Sequence[Sequence[float]]) -> bool:
        return bool(self.reward_kl_coef) or super().keeps_flat(advantages)

    def revise_advantages(
        self, rewards: Sequence[Sequence[float | None]], groups: Sequence[Sequence[Datum]]
    ) -> tuple[Sequence[Sequence[Datum]], Metrics]:
        if not self.reward_kl_coef:
            return groups, {}
        kl = fmean(math.fsum(log_ratios(datum)) for group in groups for datum in group)
        return self.penalised([[r for r in row if r is not None] for row in rewards], groups), {"rollout/kl": kl}

    @abstractmethod
    def penalised(self, rewards: Sequence[Sequence[float]], groups: Sequence[Sequence[Datum]]) -> list[list[Datum]]:
        """The data of a round, with the advantages that follow from these rewards less the costs. Answers that are
        not trained (a masked one) are no part of it, nor of any mean."""


def log_ratios(datum: Datum) -> list[float]:
    """[tokens] log pi_old - log pi_ref where the policy wrote, else 0."""
    assert datum.old_logprobs is not None and datum.ref_logprobs is not None
    guided = datum.guided or [datum.source == "guidance"] * len(datum.tokens)
    rows = zip(datum.weights, guided, datum.old_logprobs, datum.ref_logprobs, strict=True)
    return [old - ref if weight and not given else 0.0 for weight, given, old, ref in rows]

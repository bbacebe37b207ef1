"""A training method of one's own: a dataclass whose fields are the options of `algorithm:` in a recipe.

    stages: {rl: {method: best_of_group, algorithm: {minimum: 0.5}}}

This one imitates the best answer of each group and nothing else (RAFT, arXiv 2304.06767). The engine calls `loss` for
each micro-batch and divides the sum of them all by the number of tokens, sequences or units, as `per` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import aurify
from aurify.types import Lesson, Metrics, Need, Per


@aurify.algorithm("best_of_group")
@dataclass(frozen=True)
class BestOfGroup:
    minimum: float = 1.0  # a best answer that earned less is not imitated

    learns_from: ClassVar[Lesson] = "rollouts"
    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    per: ClassVar[Per] = "token"

    def advantages(self, groups: Sequence[aurify.Group]) -> list[list[float]]:
        """1 for the first of the best answers, 0 for all others and for those without a reward."""
        return [self.chosen(group.rewards) for group in groups]

    def chosen(self, rewards: Sequence[float | None]) -> list[float]:
        best = max((reward for reward in rewards if reward is not None), default=None)
        place = None if best is None or best < self.minimum else rewards.index(best)
        return [float(k == place) for k in range(len(rewards))]

    def loss(self, out: aurify.Outputs, batch: aurify.Batch) -> tuple[Tensor, Metrics]:
        assert batch.advantages is not None
        return -(batch.weights * batch.advantages * out.logprobs).sum(), {}

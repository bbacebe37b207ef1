"""Bradley-Terry reward model: a scalar head on the last token learns which of two completions people (or a reward)
prefer.

-log sigmoid(s_c - s_r - margin) + centering (s_c + s_r)^2, the second term from arXiv 2312.09244: without it only
differences are determined, and scores drift. People, and reward models after them, tend to prefer what is longer:
"reward/longer" tells how often the scores do, and `evaluation.length_correlation` how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums


@dataclass(frozen=True)
class RewardModel:
    centering: float = 0.0  # 0.01 is usual where scores of different prompts are compared

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})
    per: ClassVar[Per] = "unit"

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        assert out.scores is not None
        chosen, rejected = out.scores.view(-1, 2).unbind(1)  # [pairs]
        gap = chosen - rejected
        longer = torch.sub(*batch.lengths.view(-1, 2).unbind(1))  # [pairs] above 0 where the chosen one is
        losses = -F.logsigmoid(gap - batch.margin.view(-1, 2)[:, 0])
        if self.centering:
            losses = losses + self.centering * (chosen + rejected) ** 2
        return losses.sum(), {
            "reward/accuracy": (gap > 0).sum(),  # a tie counts as wrong
            "reward/gap": gap.detach().sum(),
            "reward/mean": (chosen + rejected).detach().sum() / 2,
            "reward/longer": (gap * longer > 0).sum(),  # the longer completion has the higher score
        }

"""SimPO (arXiv 2405.14734): preference optimisation without a reference. The reward of a completion is its mean
log-prob a = log pi(y) / |y| per token, what sampling looks at too, and the chosen one must win by a margin:

    -log sigmoid(beta (a_c - a_r) - gamma) + sft_coef NLL(chosen)

The defaults are in the paper's range (beta 2 to 2.5, gamma / beta .3 to .6). Those of TRL's CPO trainer, which has the
loss as loss_type "simpo", are beta 0.1, gamma 0.5 and an NLL term of weight 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aurify.algorithms.pairs import chosen_nll, mean_by_sequence, reward_metrics, split
from aurify.errors import UserError
from aurify.types import Batch, Lesson, Metrics, Need, Outputs, Per


@dataclass(frozen=True)
class SimPO:
    beta: float = 2.5
    gamma: float = 1.375
    sft_coef: float = 0.0  # above 0: CPO-SimPO, which forgets less

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "unit"

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.gamma < 0 or self.sft_coef < 0:
            raise UserError(
                f"simpo: beta {self.beta} must be > 0, gamma {self.gamma} and sft_coef {self.sft_coef} >= 0"
            )

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        chosen, rejected = split(self.beta * mean_by_sequence(out.logprobs, batch))  # [pairs]
        losses = -F.logsigmoid(chosen - rejected - self.gamma)
        metrics = reward_metrics(chosen, rejected)
        if self.sft_coef:
            nll = chosen_nll(out.logprobs, batch)
            losses = losses + self.sft_coef * nll
            metrics["loss/sft"] = float(nll.detach().sum())
        return losses.sum(), metrics

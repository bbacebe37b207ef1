"""SimPO (arXiv 2405.14734): preference optimisation without a reference. The reward of a completion is its mean
log-prob a = log pi(y) / |y| per token, what sampling looks at too, and the chosen one must win by a margin:

    -log sigmoid(beta (a_c - a_r) - gamma) + sft_coef NLL(chosen)

`alpha` bends that reward (AlphaPO, arXiv 2501.03884) to (1 - exp(-alpha a)) / alpha, which is a at 0: above 0 unlikely
completions lose more than likely ones gain. `label_smoothing` is that of `dpo`.

The defaults are in the paper's range (beta 2 to 2.5, gamma / beta .3 to .6). Those of TRL's CPO trainer, which has the
loss as loss_type "simpo", are beta 0.1, gamma 0.5 and an NLL term of weight 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aurify.algorithms.dpo import sigmoid
from aurify.algorithms.pairs import Smoothing, add_sft_term, mean_by_sequence, reward_metrics, split_pairs
from aurify.bounds import Checked, NonNegativeFloat, PositiveFloat
from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums


@dataclass(frozen=True)
class SimPO(Checked):
    beta: PositiveFloat = 2.5  # scale of the mean log-probs
    gamma: NonNegativeFloat = 1.375  # margin that the chosen completion must win by
    alpha: float = 0.0  # AlphaPO: 0.1 to 0.25 is usual
    label_smoothing: Smoothing = 0.0  # share of pairs that may be the wrong way round
    sft_coef: NonNegativeFloat = 0.0  # above 0: CPO-SimPO, which forgets less

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "unit"

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        rewards = mean_by_sequence(out.logprobs, batch)  # [sequences]
        if self.alpha:
            rewards = -torch.expm1(-self.alpha * rewards) / self.alpha
        chosen, rejected = split_pairs(self.beta * rewards)  # [pairs]
        losses = sigmoid(chosen, rejected + self.gamma, 1.0, self.label_smoothing)
        return add_sft_term(losses, reward_metrics(chosen, rejected), self.sft_coef, out, batch)

"""Contrastive preference optimisation (arXiv 2401.08417): DPO with a uniform reference, that is with none, held to the
data by an imitation term:

    -(1 - e) log sigmoid(beta (S_c - S_r)) - e log sigmoid(-beta (S_c - S_r)) + sft_coef NLL(chosen)

S is the summed log-prob of a completion. The paper's NLL is a sum too; we take the mean over tokens, as TRL and the
authors' code do (see `pairs.chosen_nll` for how)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aurify.algorithms.dpo import sigmoid
from aurify.algorithms.pairs import chosen_nll, reward_metrics, split
from aurify.errors import UserError
from aurify.types import Batch, Lesson, Metrics, Need, Outputs, Per


@dataclass(frozen=True)
class CPO:
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_coef: float = 1.0

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "unit"

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.sft_coef < 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"cpo: beta {self.beta} must be > 0, sft_coef {self.sft_coef} >= 0 and label_smoothing "
                f"{self.label_smoothing} in [0, 0.5)"
            )

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        chosen, rejected = split(batch.sum_by_sequence(batch.weights * out.logprobs))  # [pairs]
        nll = chosen_nll(out.logprobs, batch)
        losses = sigmoid(chosen, rejected, self.beta, self.label_smoothing) + self.sft_coef * nll
        metrics = reward_metrics(self.beta * chosen, self.beta * rejected)
        return losses.sum(), metrics | {"loss/sft": float(nll.detach().sum())}

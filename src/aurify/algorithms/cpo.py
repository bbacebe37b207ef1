"""Contrastive preference optimisation (arXiv 2401.08417): DPO with a uniform reference, that is with none, held to the
data by an imitation term:

    -(1 - e) log sigmoid(beta (S_c - S_r)) - e log sigmoid(-beta (S_c - S_r)) + sft_coef NLL(chosen)

S is the summed log-prob of a completion. `loss_type` hinge (SLiC) and ipo put those losses of `dpo` where the first two
terms stand, again without a reference; ipo takes the mean log-prob. The paper's NLL is a sum too; we take the mean over
tokens, as TRL and the authors' code do (see `pairs.chosen_nll` for how)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from aurify.algorithms.dpo import LOSSES, PER_TOKEN
from aurify.algorithms.pairs import Smoothing, add_sft_term, count_trained_tokens, reward_metrics, split_pairs
from aurify.bounds import Checked, NonNegativeFloat, PositiveFloat
from aurify.errors import UserError
from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums


@dataclass(frozen=True)
class CPO(Checked):
    beta: PositiveFloat = 0.1  # scale of the log-probs
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"  # of the margin
    label_smoothing: Smoothing = 0.0  # share of pairs that may be the wrong way round
    sft_coef: NonNegativeFloat = 1.0  # weight of the log-likelihood of the chosen completion

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise UserError(f"cpo.label_smoothing: the loss {self.loss_type!r} has none; leave it out, or take sigmoid")

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        sums = batch.sum_by_sequence(batch.weights * out.logprobs)  # [sequences]
        measured = sums / count_trained_tokens(batch) if self.loss_type in PER_TOKEN else sums
        chosen, rejected = split_pairs(measured)  # [pairs]
        losses = LOSSES[self.loss_type](chosen, rejected, self.beta, self.label_smoothing)
        metrics = reward_metrics(self.beta * chosen, self.beta * rejected)
        return add_sft_term(losses, metrics, self.sft_coef, out, batch)

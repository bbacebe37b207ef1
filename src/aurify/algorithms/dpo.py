"""Direct preference optimisation (arXiv 2305.18290) and the losses that came after it: raise the chosen completion
over the rejected one, measured against the reference. With h = log pi(y) - log pi_ref(y), summed over the tokens of a
completion (or their mean: ipo, sigmoid_norm), c the chosen and r the rejected one, e the label smoothing:

    sigmoid       -(1 - e) log s(b (h_c - h_r)) - e log s(-b (h_c - h_r))              DPO; conservative DPO with e > 0
    sigmoid_norm  the same on means; beta is then about 5                              Tulu 3, arXiv 2411.15124
    robust        unbiased where a share e of the labels is wrong                      arXiv 2403.00409
    hinge         max(0, 1 - b (h_c - h_r))                                            SLiC, arXiv 2305.10425
    ipo           (h_c - h_r - 1 / 2b)^2 on means, as its authors meant it             arXiv 2310.12036
    apo_zero      h_c up, h_r down: where chosen ones are better than the model        arXiv 2408.06266
    apo_down      both down, h_r more: where chosen ones are worse than the model      arXiv 2408.06266
    nca, bco      each completion against the reference alone                          arXiv 2402.05369, 2404.04656
    sppo          h_c to 1 / 2b and h_r to -1 / 2b (hard labels)                       arXiv 2405.00675
    exo           KL of s(b (h_c - h_r)) from the label 1 - e                          arXiv 2402.00856
    discopop      sigmoid, blending into exp(-b (h_c - h_r)) where the pair is won     arXiv 2406.08414

discopop was found by search. Its slope at a gap of 0 has the wrong sign: a policy that starts at its reference first
sinks to a gap of about -0.12 / b, and only pairs with a lead of more than 0.07 / b are driven on.

`divergence` measures the policy's distance otherwise than by reverse KL (f-DPO, arXiv 2309.16240): the losses of a gap
then see f'(pi / pi_ref) instead of h. `length_alpha` weights the tokens beyond the length that both completions
have (LD-DPO, arXiv 2409.06411); `sft_coef` adds the mean negative log-likelihood of the chosen one (see
`pairs.chosen_nll`). TRL's "sigmoid" ignores label smoothing; we honour it, and refuse it for losses that have
none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.algorithms.effects import Effect, Effects, check_algorithm_options
from aurify.algorithms.pairs import Smoothing, add_sft_term, count_trained_tokens, reward_metrics, split_pairs
from aurify.bounds import Checked, NonNegativeFloat, PositiveFloat, Share
from aurify.errors import UserError
from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums

Name = Literal[
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "apo_zero", "apo_down", "nca", "bco", "sppo", "exo",
    "discopop",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
DISCOPOP_TAU = 0.05  # it was found with this one
MAX_EXPONENT = 20.0  # beyond it a pair is no longer driven, lest its square overflow in the norm of the gradient
PairLoss = Callable[[Tensor, Tensor, float, float], Tensor]  # (h_c, h_r, beta, e), [pairs] -> [pairs]


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    gap = beta * (chosen - rejected)
    return -(1 - e) * F.logsigmoid(gap) - e * F.logsigmoid(-gap)


def robust(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    gap = beta * (chosen - rejected)
    return (-(1 - e) * F.logsigmoid(gap) + e * F.logsigmoid(-gap)) / (1 - 2 * e)


def hinge(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return F.relu(1 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def nca(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    pull = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    return -F.logsigmoid(beta * chosen) - 0.5 * pull


def bco(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def sppo(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def exo(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    gap = beta * (chosen - rejected)
    agree = torch.sigmoid(gap) * (F.logsigmoid(gap) - math.log1p(-e))
    return agree + torch.sigmoid(-gap) * (F.logsigmoid(-gap) - math.log(e))


def discopop(chosen: Tensor, rejected: Tensor, beta: float, e: float) -> Tensor:
    gap = beta * (chosen - rejected)
    won = torch.sigmoid(gap / DISCOPOP_TAU)
    return -(1 - won) * F.logsigmoid(gap) + won * torch.exp(-gap.clamp(min=-MAX_EXPONENT))


def alpha_divergence(h: Tensor, alpha: float) -> Tensor:
    return torch.expm1(((alpha - 1) * h).clamp(max=MAX_EXPONENT)) / (alpha - 1)


LOSSES: dict[Name, PairLoss] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "nca": nca,
    "bco": bco,
    "sppo": sppo,
    "exo": exo,
    "discopop": discopop,
}
PER_TOKEN = ("sigmoid_norm", "ipo")  # h is a mean over tokens there
GAPS = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo", "discopop")  # of h_c - h_r alone
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo")  # those that e changes
# f'(t) for log t = h, 0 at the reference
DIVERGENCES: dict[Divergence, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda h, alpha: h,
    "forward_kl": lambda h, alpha: alpha_divergence(h, 0.0),
    "js": lambda h, alpha: math.log(2) + F.logsigmoid(h),
    "alpha": alpha_divergence,
}


@dataclass(frozen=True)
class DPO(Checked):
    beta: PositiveFloat = 0.1  # strength of the pull to the reference
    loss_type: Name = "sigmoid"  # see docs/preferences.md
    label_smoothing: Smoothing | None = None  # None: 0.001 for exo, which needs some, and 0 for the others
    divergence: Divergence = "reverse_kl"  # between policy and reference
    divergence_alpha: float = 0.5  # of "alpha": near 1 it is reverse_kl, at 0 forward_kl
    length_alpha: Share = 1.0  # 1 = off; 0 = only the length that both completions have counts
    sft_coef: NonNegativeFloat = 0.0  # weight of the log-likelihood of the chosen completion

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})
    per: ClassVar[Per] = "unit"
    effects: ClassVar[Effects] = {
        "divergence_alpha": Effect(lambda a: a.divergence == "alpha", "with divergence: alpha"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type == "exo" and self.smoothing == 0:
            raise UserError("label_smoothing: 0 is out of range; for the loss exo it must be in (0, 0.5)")
        if self.smoothing and self.loss_type not in SMOOTHED:
            raise UserError(
                f"dpo.label_smoothing: the loss {self.loss_type!r} has no label smoothing; leave it out, or take one "
                f"of {', '.join(SMOOTHED)}"
            )
        if self.divergence != "reverse_kl" and self.loss_type not in GAPS:
            raise UserError(
                f"dpo.divergence: {self.divergence!r} has a meaning only for differences of two completions, which the "
                f"loss {self.loss_type!r} does not keep to; take reverse_kl, or one of {', '.join(GAPS)}"
            )
        if self.divergence_alpha == 1:
            raise UserError("dpo.divergence_alpha: the alpha-divergence at 1 is reverse_kl; set divergence to that")
        check_algorithm_options(self)

    @property
    def smoothing(self) -> float:
        if self.label_smoothing is None:
            return 1e-3 if self.loss_type == "exo" else 0.0
        return self.label_smoothing

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        assert batch.ref_logprobs is not None
        weights = (
            batch.weights
            if self.length_alpha == 1
            else batch.weights * discount_longer_answer(batch, self.length_alpha)
        )
        h = batch.sum_by_sequence(weights * (out.logprobs - batch.ref_logprobs))  # [sequences]
        measured = DIVERGENCES[self.divergence](h, self.divergence_alpha)
        if self.loss_type in PER_TOKEN:
            measured = measured / count_trained_tokens(batch)
        losses = LOSSES[self.loss_type](*split_pairs(measured), self.beta, self.smoothing)  # [pairs]
        return add_sft_term(losses, reward_metrics(*split_pairs(self.beta * h)), self.sft_coef, out, batch)


def discount_longer_answer(batch: Batch, alpha: float) -> Tensor:
    """[tokens] alpha for what a completion has beyond the length of its pair's shorter one, 1 before that."""
    lengths = torch.bincount(batch.sequence, minlength=batch.num_sequences)  # [sequences] trained tokens
    index = torch.arange(len(batch.sequence), device=lengths.device) - (lengths.cumsum(0) - lengths)[batch.sequence]
    shared = lengths.view(-1, 2).amin(1).repeat_interleave(2)  # [sequences]
    return torch.where(index < shared[batch.sequence], 1.0, alpha)

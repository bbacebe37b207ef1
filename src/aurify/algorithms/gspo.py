"""Group sequence policy optimisation (arXiv 2507.18071): the ratio of whole sequences, by the geometric mean of their
tokens', is clipped; so a sequence is kept or left out as one. With s = exp(mean(log pi - log pi_old)):

    sequence   -min(s A, clip(s) A), whose gradient is spread evenly over the tokens
    token      the same value, with s in the form sg(s) pi / sg(pi): tokens may then have advantages of their own

LUSPO (arXiv 2602.05261) multiplies a sequence's loss by its length, so that long answers are not spared: that is
`aggregator: constant, constant_length: 1`, the sum over tokens.

Ratios of sequences differ far less than those of tokens: hence the narrow clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from aurify.algorithms.effects import NEVER, Effect, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import NonNegativeFloat
from aurify.types import Batch, Outputs


@dataclass(frozen=True)
class GSPO(GRPO):
    clip_low: NonNegativeFloat = 3e-4
    clip_high: NonNegativeFloat = 4e-4
    aggregator: Literal["token", "sequence", "constant"] = "sequence"
    # token: the same value, but tokens may have advantages of their own
    form: Literal["sequence", "token"] = "sequence"

    effects: ClassVar[Effects] = {
        "top_entropy": Effect(lambda a: a.form == "token", "with form: token; a sequence is kept or left out as one"),
        "credit": Effect(lambda a: a.form == "token", "with form: token; a sequence is kept or left out as one"),
        "covariance_kl_coef": NEVER,
        "covariance": Effect(
            lambda a: a.form == "token" and a.covariance == "clip",
            "with form: token and covariance: clip; a sequence is kept or left out as one",
        ),
    }

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change = ratio.log()  # [tokens]
        mean = batch.mean_by_unit(change)[batch.token_unit]
        if self.form == "token":
            mean = mean.detach() + out.logprobs - out.logprobs.detach()
        return super().surrogate_losses(out, batch, mean.exp())

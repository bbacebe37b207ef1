"""Variational sequence-level soft policy optimisation (arXiv 2602.10693): for updates far from the policy that sampled.
A whole sequence has one weight, by the product w of its tokens' ratios, which falls smoothly on both sides of a hump
near 1 instead of being clipped. The weight has no gradient:

    -sg(phi(w)) A log pi,   phi(w) = w^k exp(lambda (1 - w)),   phi(1) = 1

Positive advantages have (k, lambda) = (2, 3), negative ones (3, 2). The paper takes w against the sampler; so does TRL,
which multiplies its sampler's ratio into w. Here w is against the trainer's own old log-probs, as in all of the family,
and `correction` stands beside it as a factor of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import PositiveFloat
from aurify.types import Batch, Outputs


@dataclass(frozen=True)
class VESPO(GRPO):
    k_positive: PositiveFloat = 2.0  # at 0 the weight has no hump, and so with the others
    lambda_positive: PositiveFloat = 3.0  # of phi(w) = w^k exp(lambda (1 - w)), where A > 0
    k_negative: PositiveFloat = 3.0  # the same where A < 0
    lambda_negative: PositiveFloat = 2.0  # the same where A < 0

    effects: ClassVar[Effects] = dict.fromkeys(
        ("credit", "discount", "surrogate", "clip_low", "clip_high", "dual_clip", "covariance_kl_coef"), NEVER
    )

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        log_w = batch.sum_by_unit(batch.weights * ratio.detach().log())[batch.token_unit]  # [tokens]
        up = batch.advantages > 0
        k = torch.where(up, self.k_positive, self.k_negative)
        decay = torch.where(up, self.lambda_positive, self.lambda_negative)
        weight = (k * log_w - decay * log_w.expm1()).exp()  # an infinite w has weight 0
        return -weight * batch.advantages * out.logprobs, {"loss/sequence_weight": weight}

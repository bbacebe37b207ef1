"""Geometric-mean policy optimisation (arXiv 2507.20673): tokens are clipped as in GRPO, but on the logarithm of their
ratios, and a sequence then counts by their geometric mean, which a few outliers hardly move:

    -exp(mean of c) A,   c = min(log rho, clip_high) where A > 0, else max(log rho, -clip_low)

So the clip may be wide: e^-0.4 to e^0.4. GSPO clips the geometric mean instead: a sequence is kept or left out as one
there, single tokens here. Bounds are of log rho, not of rho."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import NonNegativeFloat
from aurify.types import Batch, Outputs


@dataclass(frozen=True)
class GMPO(GRPO):
    clip_low: NonNegativeFloat = 0.4
    clip_high: NonNegativeFloat = 0.4
    aggregator: Literal["token", "sequence", "constant"] = "sequence"

    # an advantage of a token weighs the gradient of its whole sequence: single tokens cannot be chosen
    effects: ClassVar[Effects] = {
        **dict.fromkeys(("dual_clip", "top_entropy", "credit", "discount"), NEVER),
        **dict.fromkeys(("covariance", "covariance_share", "covariance_kl_coef"), NEVER),
    }

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        change, up = ratio.log(), batch.advantages > 0  # [tokens]
        metrics: dict[str, Tensor] = {}
        if self.surrogate == "clip":
            clipped = torch.where(up, change.clamp(max=self.clip_high), change.clamp(min=-self.clip_low))
            metrics["loss/clip_low"] = ((clipped != change) & (batch.advantages < 0)).float()
            metrics["loss/clip_high"] = ((clipped != change) & up).float()
            change = clipped
        mean = batch.mean_by_unit(change)[batch.token_unit]
        return -mean.exp() * batch.advantages, metrics

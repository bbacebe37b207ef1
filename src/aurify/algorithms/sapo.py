"""Soft adaptive policy optimisation (arXiv 2511.20347): instead of a clip, a gate that closes smoothly as the ratio
leaves 1, sooner for negative advantages:

    -(4 / tau) sigmoid(tau (rho - 1)) A,   tau = tau_positive where A > 0, else tau_negative

At rho = 1 its gradient is that of -rho A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import PositiveFloat
from aurify.types import Batch, Outputs


@dataclass(frozen=True)
class SAPO(GRPO):
    tau_positive: PositiveFloat = 1.0  # how sharply the gate closes where A > 0
    tau_negative: PositiveFloat = 1.05  # the same where A < 0
    aggregator: Literal["token", "sequence", "constant"] = "sequence"

    effects: ClassVar[Effects] = dict.fromkeys(
        ("surrogate", "clip_low", "clip_high", "dual_clip", "covariance_kl_coef"), NEVER
    )

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        tau = torch.where(batch.advantages > 0, self.tau_positive, self.tau_negative)
        return -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * batch.advantages, {}

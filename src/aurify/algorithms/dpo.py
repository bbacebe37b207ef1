"""Direct preference optimisation (arXiv 2305.18290): raise the chosen completion over the rejected one, measured
against the reference. With h = log pi(y) - log pi_ref(y) summed over completion tokens and D = h_c - h_r:

    loss = -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)

e is label smoothing (conservative DPO), for labels that are wrong now and then. TRL's "sigmoid" ignores it; we
honour it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aurify.errors import UserError
from aurify.types import Batch, Metrics, Need, Outputs, Per


@dataclass(frozen=True)
class DPO:
    beta: float = 0.1
    label_smoothing: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})
    per: ClassVar[Per] = "unit"

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"dpo: beta {self.beta} must be > 0 and label_smoothing {self.label_smoothing} in [0, 0.5)")

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.ref_logprobs is not None
        h = batch.sum_by_sequence(batch.weights * (out.logprobs - batch.ref_logprobs))  # [sequences]
        chosen, rejected = h.view(-1, 2).unbind(1)  # [pairs]
        gap = self.beta * (chosen - rejected)
        losses = -(1 - self.label_smoothing) * F.logsigmoid(gap) - self.label_smoothing * F.logsigmoid(-gap)
        return losses.sum(), {
            "reward/accuracy": float((gap > 0).sum()),
            "reward/margin": float(gap.detach().sum()),
            "reward/chosen": float(self.beta * chosen.detach().sum()),
            "reward/rejected": float(self.beta * rejected.detach().sum()),
        }

"""What to do where the sampler gives a token another probability than the trainer: another engine, another precision.

With d = log pi_old - log pi_sampler of the sampled tokens:

    token_tis       loss times min(exp d, high)                          truncated importance sampling
    sequence_tis    loss times min(exp sum d, high)
    token_mis       loss times exp d, and 0 outside [low, high]          masked importance sampling (IcePop)
    sequence_mis    the same with exp sum d
    geometric_mask  sequences whose exp mean d is outside [low, high] are left out
    none            nothing is changed; the gap is measured all the same

`negative_drift` leaves out sequences with A < 0 from which the policy has moved by more than it: mean of
(log pi_sampler - log pi_old) (DeepSeek-V3.2). TRL masks sequences by default with vLLM; verl corrects nothing unless
asked, and so do we: the sampler in the process has the trainer's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aurify.errors import UserError
from aurify.types import Batch

MAX_LOG_RATIO = 20.0
Kind = Literal["none", "token_tis", "sequence_tis", "token_mis", "sequence_mis", "geometric_mask"]


@dataclass(frozen=True)
class Correction:
    kind: Kind = "none"
    low: float = 0.5
    high: float = 2.0
    negative_drift: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1 < self.high:
            raise UserError(f"correction: low {self.low} and high {self.high} must lie on either side of 1")

    def weigh(self, old: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What each token's loss is multiplied by, and metrics; all [tokens], without gradient."""
        assert batch.logprobs is not None
        gap = (old - batch.logprobs).detach()
        total = batch.sum_by_sequence(batch.weights * gap)
        mean = total / batch.lengths.clamp(min=1e-9)
        weight = torch.ones_like(gap)
        if self.kind.startswith("token"):
            weight = self.bounded(gap)
        elif self.kind.startswith("sequence"):
            weight = self.bounded(total)[batch.sequence]
        elif self.kind == "geometric_mask":
            weight = ((mean.exp() >= self.low) & (mean.exp() <= self.high)).float()[batch.sequence]
        if self.negative_drift is not None:
            assert batch.advantages is not None
            drifted = (-mean > self.negative_drift)[batch.sequence] & (batch.advantages < 0)
            weight = torch.where(drifted, 0.0, weight)
        ratio = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return weight, {
            "loss/sampler_gap": gap.abs(),
            "loss/sampler_ratio": ratio,
            "loss/sampler_ratio_squared": ratio**2,  # effective share of samples: ratio^2 / this
            "loss/sampler_rejected": (weight == 0).float(),
        }

    def bounded(self, log_ratio: Tensor) -> Tensor:
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        if self.kind.endswith("tis"):
            return ratio.clamp(max=self.high)
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)

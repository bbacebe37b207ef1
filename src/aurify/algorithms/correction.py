"""What to do where the sampler gives a token another probability than the trainer: another engine, another precision.

With d = log pi_old - log pi_sampler of the sampled tokens:

    token_tis       loss times min(exp d, high)                          truncated importance sampling
    sequence_tis    loss times min(exp sum d, high)
    token_mis       loss times exp d, and 0 outside [low, high]          masked importance sampling (IcePop)
    sequence_mis    the same with exp sum d
    geometric_mask  sequences whose exp mean d is outside [low, high] are left out
    none            nothing is changed; the gap is measured all the same

Tokens of a guide, and replayed ones, were not sampled now: d is not known for them. They keep their weight (that of
their sequence, in the kinds for sequences) and enter no sum, no mean and no metric; "loss/sampler_share" tells how many
tokens the metrics are about.

`negative_drift` leaves out sequences with A < 0 from which the policy of now has moved by more than it: mean of
(log pi_sampler - log pi) (DeepSeek-V3.2). It compares with the policy of each update, not with that before the first:
it is there for the later updates of a rollout. TRL masks sequences by default with vLLM; verl corrects nothing unless
asked, and so do we where the sampler in the process has the trainer's weights. Where a server samples, a recipe that
says nothing gets token_tis (`build_algorithm` of pipeline/recipe.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from aurify.bounds import Checked, Gt, Interval
from aurify.errors import UserError
from aurify.types import Batch

MAX_LOG_RATIO = 20.0
Kind = Literal["none", "token_tis", "sequence_tis", "token_mis", "sequence_mis", "geometric_mask"]


@dataclass(frozen=True)
class Correction(Checked):
    kind: Kind = "none"  # truncated or masked importance weights; see algorithms/correction.py
    low: Annotated[float, Interval(ge=0, lt=1)] = 0.5  # ratios below are masked
    high: Annotated[float, Gt(1)] = 2.0  # ratios above are cut, or masked
    # leave out sequences with negative advantage that have drifted by more than this
    negative_drift: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low != 0.5 and not self.kind.endswith(("mis", "mask")):
            raise UserError(
                f"correction.low: {self.low} has an effect only with kind: token_mis, sequence_mis or geometric_mask; "
                "leave it out"
            )
        if self.high != 2.0 and self.kind == "none":
            raise UserError(f"correction.high: {self.high} has an effect only with a kind; leave it out")

    def weigh(self, old: Tensor, batch: Batch, now: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """What each token's loss is multiplied by, and metrics; all [tokens], without gradient.

        old, now: the trainer's log-probs before the first update and of now; None: there has been no update."""
        assert batch.logprobs is not None
        sampled = ~(batch.written_by("guidance") | batch.written_by("replay"))  # [tokens]
        counted = batch.weights * sampled
        num = batch.sum_by_unit(counted).clamp(min=1e-9)  # [units]
        gap = torch.where(sampled, old - batch.logprobs, 0.0).detach()
        total = batch.sum_by_unit(counted * gap)
        mean = total / num
        weight = torch.ones_like(gap)
        if self.kind.startswith("token"):
            weight = self.bounded(gap)
        elif self.kind.startswith("sequence"):
            weight = self.bounded(total)[batch.token_unit]
        elif self.kind == "geometric_mask":
            weight = ((mean.exp() >= self.low) & (mean.exp() <= self.high)).float()[batch.token_unit]
        if self.negative_drift is not None:
            assert batch.advantages is not None
            moved = batch.logprobs - (old if now is None else now)
            drift = batch.sum_by_unit(counted * moved.detach()) / num  # [units]
            drifted = (drift > self.negative_drift)[batch.token_unit] & (batch.advantages < 0)
            weight = torch.where(drifted, 0.0, weight)
        ratio = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return weight, {
            "loss/sampler_gap": gap.abs(),
            "loss/sampler_ratio": sampled * ratio,
            "loss/sampler_ratio_squared": sampled * ratio**2,  # effective share of samples: ratio^2 / this
            "loss/sampler_rejected": sampled * (weight == 0).float(),
            "loss/sampler_share": sampled.float(),
        }

    def bounded(self, log_ratio: Tensor) -> Tensor:
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        if self.kind.endswith("tis"):
            return ratio.clamp(max=self.high)
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)

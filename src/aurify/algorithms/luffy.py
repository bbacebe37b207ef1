"""LUFFY (arXiv 2504.14945): GRPO over groups that hold a guide's answers beside the policy's own. Advantages are taken
over the union, so that a question the policy can answer by itself teaches little of the guide.

    policy's tokens   -rho A, or clipped as in GRPO (clip_on_policy)
    guide's tokens    -f(p) A with f(p) = p / (p + 0.1): the guide counts as certain, so p = pi is the ratio itself

Defaults are those of its best run: centred advantages that are not scaled, no clipping. We take the mean over all
tokens, as the paper writes it; its code divides by a constant (`aggregator: constant`). With `sft_coef` it is the
baseline "RL and SFT" instead: advantages over the policy's own answers, plus the mean negative log-likelihood of the
guide's tokens. Any other field of GRPO may be set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from aurify.algorithms.estimators import Scale
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.shaping import Shape, shaped
from aurify.errors import UserError
from aurify.types import Batch, Datum, Group, Outputs, Policy, Sums


@dataclass(frozen=True)
class LUFFY(GRPO):
    scale: Scale = "none"
    clip_on_policy: bool = False  # surrogate "clip" clips the policy's own tokens too
    shape: Shape = "fraction"
    gamma: float = 0.1
    sft_coef: float = 0.0
    entropy_on: Literal["all", "policy"] = "all"  # tokens that entropy_coef counts; the reference takes all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma <= 0 or self.sft_coef < 0:
            raise UserError(f"luffy: gamma {self.gamma} must be above 0 and sft_coef {self.sft_coef} not below it")

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        if not self.sft_coef:
            return super().advantages(groups)
        own = [Group(g.task, [t for t in g.trajectories if t.source != "guidance"]) for g in groups]
        return [
            [next(values) if t.source != "guidance" else float(t.reward is not None) for t in group.trajectories]
            for group, values in zip(groups, map(iter, super().advantages(own)), strict=True)
        ]

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        """With sft_coef the two terms have denominators of their own: each is divided by what it has of the step."""
        inherited = getattr(super(), "prepare", None)
        data = list(data) if inherited is None else inherited(data, policy, temperature)
        if not self.sft_coef:
            return data
        guided = [datum for datum in data if datum.source == "guidance"]
        own = [datum for datum in data if datum.source != "guidance"]
        scale = {which: self.share(data) / max(1.0, self.share(part)) for which, part in ((True, guided), (False, own))}
        if self.aggregator == "constant":  # which divides by a length: not a mean over the guide's tokens yet
            assert self.constant_length is not None
            num_tokens = sum(sum(datum.weights) for datum in guided)
            scale[True] = len(data) * self.constant_length / max(1.0, num_tokens)
        return [
            replace(datum, advantages=[scale[datum.source == "guidance"] * value for value in datum.advantages or ()])
            for datum in data
        ]

    def share(self, data: Sequence[Datum]) -> float:
        """What these data have in the denominator."""
        return sum(sum(datum.weights) for datum in data) if self.per == "token" else float(len(data))

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        """Nobody knows how likely its tokens were to the guide: to whatever compares policies, they look as now."""
        guided, now = batch.written_by("guidance"), out.logprobs.detach()

        def as_now(stream: Tensor | None) -> Tensor | None:
            return None if stream is None else torch.where(guided, now, stream)

        if out.entropy is not None and self.entropy_on == "policy":
            out = replace(out, entropy=torch.where(batch.written_by("policy"), out.entropy, 0.0))
        batch = replace(batch, logprobs=as_now(batch.logprobs), old_logprobs=as_now(batch.old_logprobs))
        return super().loss(out, batch)

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        metrics: dict[str, Tensor] = {}
        if self.surrogate == "clip" and not self.clip_on_policy:
            losses = -ratio * batch.advantages
        else:
            losses, metrics = super().surrogate_losses(out, batch, ratio)
        guided = batch.written_by("guidance")
        weight = self.sft_coef * out.logprobs if self.sft_coef else shaped(out.logprobs, self.shape, self.gamma)
        losses = torch.where(guided, -weight * batch.advantages, losses)
        now = out.logprobs.detach()
        return losses, {name: torch.where(guided, 0.0, values) for name, values in metrics.items()} | {
            "loss/guidance_share": guided.float(),
            "loss/guidance_probability": guided * now.exp(),
            "loss/guidance_nll": guided * -now,
        }

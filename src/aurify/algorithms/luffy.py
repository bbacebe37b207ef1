"""LUFFY (arXiv 2504.14945): GRPO over groups that hold a guide's answers beside the policy's own. Advantages are taken
over the union, so that a question the policy can answer by itself teaches little of the guide.

    policy's tokens   -rho A, or clipped as in GRPO (clip_on_policy)
    guide's tokens    -f(p) A with f(p) = p / (p + 0.1): the guide counts as certain, so p = pi is the ratio itself

Defaults are those of its best run: centred advantages that are not scaled, no clipping. We take the mean over all
tokens, as the paper writes it; its code divides by a constant (`aggregator: constant`). With `sft_coef` it is the
baseline "RL and SFT" instead: advantages over the policy's own answers, plus the mean negative log-likelihood of the
guide's tokens.

`behaviour: recorded` takes the guide at its word: f sees pi / (pi_guide + 1e-6), with the log-probs that stand beside a
trace (see aurify.data.traces). A trace without them counts as certain, which is `one`, the paper's choice.

`entropy_on: policy` leaves out the tokens of a guide and of replay. Their entropy is not pushed and not counted: the
metric, and the `entropy_target` that follows it, are means over what the policy wrote now. The bonus itself, like every
term, is divided by the denominator of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from aurify.algorithms.effects import NEVER, Effect, Effects
from aurify.algorithms.estimators import Scale
from aurify.algorithms.grpo import GRPO
from aurify.bounds import NonNegativeFloat, PositiveFloat
from aurify.errors import UserError
from aurify.types import Batch, Datum, Group, Outputs, Policy, Sums, count_units

SMALLEST_PROBABILITY = 1e-6  # beside a recorded one
MAX_LOG = 20.0
Shape = Literal["fraction", "none", "log", "linear_log", "power"]
BENT: tuple[Shape, ...] = ("fraction", "linear_log", "power")  # by gamma


@dataclass(frozen=True)
class LUFFY(GRPO):
    scale: Scale = "none"
    clip_on_policy: bool = False  # the ratios of the policy's own tokens
    shape: Shape = "fraction"  # of the loss of a guide's tokens; none: their ratio as it is
    gamma: PositiveFloat = 0.1  # of the shapes fraction, linear_log and power
    behaviour: Literal["one", "recorded"] = "one"  # how likely a guide's tokens were to the guide
    sft_coef: NonNegativeFloat = 0.0  # weight of the log-likelihood of a guide's tokens
    entropy_on: Literal["all", "policy"] = "all"  # tokens that entropy_coef counts; the reference takes all

    asks_guide_ratio: ClassVar[bool] = False
    stage_needs: ClassVar[tuple[str, ...]] = ("guidance",)
    effects: ClassVar[Effects] = {
        **{
            name: Effect(lambda a: a.clip_on_policy, "with clip_on_policy: true")
            for name in ("clip_low", "clip_high", "dual_clip")
        },
        "surrogate": Effect(lambda a: False, "with other methods: here clip_on_policy says whether ratios are clipped"),
        "covariance_kl_coef": NEVER,
        "credit": Effect(lambda a: not a.sft_coef, "without sft_coef"),
        "shape": Effect(lambda a: not a.sft_coef, "without sft_coef", "guidance"),
        "gamma": Effect(lambda a: not a.sft_coef and a.shape in BENT, "with a shape that has one", "guidance"),
        "behaviour": Effect(
            lambda a: not a.sft_coef and a.shape != "log", "without sft_coef, with another shape than log", "guidance"
        ),
        "sft_coef": Effect(lambda a: True, "", "guidance"),
        "entropy_on": Effect(lambda a: "entropy" in a.needs, "with entropy_coef or entropy_target"),
    }

    def check_stage(self, stage: Any) -> None:
        super().check_stage(stage)
        if self.sft_coef and stage.guidance and stage.guidance.prefix:
            raise UserError("guidance.prefix: sft_coef imitates whole traces; set one of the two")

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
        data = super().prepare(data, policy, temperature)
        if not self.sft_coef:
            return data
        guided = [datum for datum in data if datum.source == "guidance"]
        own = [datum for datum in data if datum.source != "guidance"]
        scale = {which: self.share(data) / max(1.0, self.share(part)) for which, part in ((True, guided), (False, own))}
        if self.aggregator == "constant":  # which divides by a length: not a mean over the guide's tokens yet
            assert self.constant_length is not None
            num_tokens = sum(sum(datum.weights) for datum in guided)
            scale[True] = count_units(data) * self.constant_length / max(1.0, num_tokens)
        return [
            replace(datum, advantages=[scale[datum.source == "guidance"] * value for value in datum.advantages or ()])
            for datum in data
        ]

    def share(self, data: Sequence[Datum]) -> float:
        """What these data have in the denominator."""
        return sum(sum(datum.weights) for datum in data) if self.per == "token" else float(count_units(data))

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        if out.entropy is None or self.entropy_on == "all":
            return super().loss(out, batch)
        own = batch.written_by("policy")
        loss, metrics = super().loss(replace(out, entropy=torch.where(own, out.entropy, 0.0)), batch)
        return loss, metrics | {"loss/entropy_share": self.total(own.float(), batch)}

    def ratio_base(self, now: Tensor, batch: Batch) -> Tensor:
        """A guide's token has the ratio 1 there: its own stands in `surrogate_losses`."""
        return torch.where(batch.written_by("guidance"), now, super().ratio_base(now, batch))

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        metrics: dict[str, Tensor] = {}
        if not self.clip_on_policy:
            losses = -ratio * batch.advantages
        else:
            losses, metrics = super().surrogate_losses(out, batch, ratio)
        guided = batch.written_by("guidance")
        log_x = out.logprobs
        if self.behaviour == "recorded" and batch.logprobs is not None:
            recorded = (batch.logprobs.exp() + SMALLEST_PROBABILITY).log()
            log_x = log_x - torch.where(batch.logprobs < 0, recorded, 0.0)  # without a record it counts as certain
        weight = self.sft_coef * out.logprobs if self.sft_coef else shape_probability(log_x, self.shape, self.gamma)
        losses = torch.where(guided, -weight * batch.advantages, losses)
        now = out.logprobs.detach()
        return losses, {name: torch.where(guided, 0.0, values) for name, values in metrics.items()} | {
            "loss/guidance_share": guided.float(),
            "loss/guidance_probability": guided * now.exp(),
            "loss/guidance_nll": guided * -now,
        }


def shape_probability(log_x: Tensor, shape: Shape, gamma: float) -> Tensor:
    """fraction: x / (x + gamma). none: x. log: log x. linear_log: x + gamma log x. power: x ** gamma.

    How much a token counts that the policy of now did not write, by f(x) of a probability or an importance ratio x. No
    clipping: what the policy would hardly write is what such tokens are there for.

    The gradient of -f(x) A is -A x f'(x) grad log pi. For x / (x + gamma), x f'(x) is 0.0098 at 0.001, 0.25 at
    gamma = 0.1 and 0.0826 at 1: next to plain importance weighting (x f'(x) = x), rare tokens count about ten times as
    much, and sure ones a twelfth."""
    if shape == "log":
        return log_x  # never clamped: it is there for the tokens of which the policy knows least
    x = log_x.clamp(max=MAX_LOG).exp()  # from above alone: small ones have a gradient that vanishes by itself
    if shape == "power":
        return (gamma * log_x.clamp(max=MAX_LOG)).exp()
    if shape == "none":
        return x
    return x / (x + gamma) if shape == "fraction" else x + gamma * log_x

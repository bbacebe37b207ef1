"""Group relative policy optimisation (arXiv 2402.03300) as three choices: how advantages are scaled, which
surrogate, and how token losses are summed up.

    advantage   (r - mean of the group) / (deviation of the group | of the batch | nothing)
    surrogate   clip: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), bounded by -dual_clip A for A < 0
                plain: -rho A
    aggregator  token: mean over all tokens of the step (DAPO); sequence: mean of the sequences' means (the paper);
                constant: sum over tokens / (sequences * constant_length) (Dr. GRPO)

rho = pi / pi_old. With one update a rollout pi_old is the policy itself and rho = 1: only its gradient matters. KL
(k1, k2 or k3 of http://joschu.net/blog/kl-approx.html) and the entropy bonus are added per token. We default to the
token mean without KL, and add no dual clip unless asked (verl always clips dually, at 3;
the two-sided clip of INTELLECT-2, TRL's `delta`, is the same bound).

Its relatives (dapo, gspo, cispo, ...) extend it: they set other defaults, or replace `advantages` or
`surrogate_losses`. So every one of them has what stands here: `correction` for a sampler that computes otherwise than
the trainer, `top_entropy`
(only the least certain tokens of the step learn, arXiv 2506.01939) and `entropy_target` (see loops/entropy.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aurify.algorithms.correction import Correction
from aurify.algorithms.estimators import Scale, group_advantages
from aurify.errors import UserError
from aurify.types import Batch, Datum, Group, Lesson, Need, Outputs, Per, Policy, Sums

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class GRPO:
    scale: Scale = "group"
    surrogate: Literal["clip", "plain"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregator: Literal["token", "sequence", "constant"] = "token"
    constant_length: int | None = None  # for aggregator "constant"; usually sampling.max_tokens
    kl_coef: float = 0.0
    kl: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = 0.0
    entropy_target: float | None = None  # nats; the loop then moves entropy_coef
    top_entropy: float = 1.0  # share of the tokens of a step
    correction: Correction = Correction()

    learns_from: ClassVar[Lesson] = "rollouts"
    unused: ClassVar[tuple[str, ...]] = ()  # fields that the surrogate of a relative has no place for

    def __post_init__(self) -> None:
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"grpo.dual_clip: {self.dual_clip} must be greater than 1 (3 is usual), or null")
        if not 0 < self.top_entropy <= 1:
            raise UserError(f"grpo.top_entropy: {self.top_entropy} must be in (0, 1]; 0.2 is usual, 1 is off")
        if self.aggregator == "constant" and not self.constant_length:
            raise UserError(
                "grpo.aggregator 'constant' divides by a length: set grpo.constant_length, usually sampling.max_tokens"
            )
        self.refuse(self.unused, f"has no effect on {type(self).__name__.lower()}; leave it out")
        for name in ("clip_low", "clip_high", "kl_coef"):
            if getattr(self, name) < 0:
                raise UserError(f"grpo.{name}: {getattr(self, name)} must not be negative")

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Fields that would be ignored: an error where one is not left as it is."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f"{type(self).__name__.lower()}.{name}: {getattr(self, name)} {why}")

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"advantages"}
        if self.kl_coef:
            needs.add("ref_logprobs")
        if self.entropy_coef or self.entropy_target is not None:
            needs.add("entropy")
        return frozenset(needs)

    @property
    def per(self) -> Per:
        return "token" if self.aggregator == "token" else "sequence"

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        return group_advantages([group.rewards for group in groups], self.scale)

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        """With `top_entropy`, tokens below the quantile of the step, over all ranks, get advantage 0. They stay in the
        denominator, as in TRL."""
        if self.top_entropy == 1:
            return list(data)
        entropies = policy.entropies(data, temperature=temperature)
        return keep_uncertain(data, entropies, self.top_entropy, policy.over_ranks)

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        old = out.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        ratio = (out.logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        losses, metrics = self.surrogate_losses(out, batch, ratio)
        if batch.logprobs is not None:
            trust, told = self.correction.weigh(old, batch)
            losses, metrics = trust * losses, metrics | told
        if self.kl_coef:
            assert batch.ref_logprobs is not None
            divergence = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl)
            losses = losses + self.kl_coef * divergence
            metrics["loss/kl"] = divergence.detach()
        if out.entropy is not None:
            losses = losses - self.entropy_coef * out.entropy
            metrics["loss/entropy"] = out.entropy.detach()
        metrics["loss/ratio"] = ratio.detach()
        return self.total(losses, batch, self.constant_length), {
            name: self.total(values, batch) for name, values in metrics.items()
        }

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[tokens] losses and metrics. What treats some tokens in another way overrides it."""
        assert batch.advantages is not None
        advantages = batch.advantages
        losses = -ratio * advantages
        metrics: dict[str, Tensor] = {}
        if self.surrogate == "clip":
            clipped = -ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
            metrics["loss/clip_low"] = ((clipped > losses) & (advantages < 0)).float()
            metrics["loss/clip_high"] = ((clipped > losses) & (advantages > 0)).float()
            losses = torch.maximum(losses, clipped)
            if self.dual_clip is not None:
                bounded = torch.minimum(losses, -self.dual_clip * advantages)
                losses = torch.where(advantages < 0, bounded, losses)
        return losses, metrics

    def total(self, values: Tensor, batch: Batch, constant_length: int | None = None) -> Tensor:
        """[tokens] -> the sum that belongs to `per`. Metrics give no length: they are means over the sequence,
        always."""
        weighted = batch.weights * values
        if self.aggregator == "token":
            return weighted.sum()
        if self.aggregator == "constant" and constant_length is not None:
            return weighted.sum() / constant_length
        return (batch.sum_by_sequence(weighted) / batch.lengths).sum()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi; k3 is never negative and has less variance than k1."""
    difference = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    return (-difference).exp() + difference - 1


def keep_uncertain(
    data: Sequence[Datum],
    entropies: Sequence[Sequence[float]],
    share: float,
    over_ranks: Callable[[Sequence[float]], list[float]] = list,
) -> list[Datum]:
    """The data with advantage 0 on all trained tokens but the `share` of highest entropy."""
    own = [
        value
        for datum, row in zip(data, entropies, strict=True)
        for value, w in zip(row, datum.weights, strict=True)
        if w
    ]
    trained = sorted(over_ranks(own), reverse=True)
    if not trained:
        return list(data)
    least = trained[max(1, round(share * len(trained))) - 1]
    return [
        replace(
            datum,
            advantages=[a if e >= least else 0.0 for a, e in zip(datum.advantages or [], row, strict=True)],
        )
        for datum, row in zip(data, entropies, strict=True)
    ]

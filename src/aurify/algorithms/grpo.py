"""Group relative policy optimisation (arXiv 2402.03300) as three choices: how advantages are scaled, which
surrogate, and how token losses are summed up.

    advantage   (r - mean of the group) / (deviation of the group | of the batch | nothing)
    surrogate   clip: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), bounded by -dual_clip A for A < 0
                plain: -rho A
    aggregator  token: mean over all tokens of the step (DAPO); sequence: mean of the sequences' means (the paper);
                constant: sum over tokens / (sequences * constant_length) (Dr. GRPO)

A sequence is a rollout, whatever number of rows it has (see `Trajectory.rows`): one that is split has the gradient of
one that is not.

rho = pi / pi_old. With one update a rollout pi_old is the policy itself and rho = 1: only its gradient matters. KL
(k1, k2 or k3 of http://joschu.net/blog/kl-approx.html) and the entropy bonus are added per token. We default to the
token mean without KL, and add no dual clip unless asked (verl always clips dually, at 3;
the two-sided clip of INTELLECT-2, TRL's `delta`, is the same bound).

Its relatives (dapo, gspo, cispo, ...) extend it: they set other defaults, or replace `advantages` or
`surrogate_losses`. So every one of them has what stands here, unless its `effects` say otherwise: `correction` for a
sampler that computes otherwise than the trainer, `top_entropy` (only the least certain tokens of the step learn, arXiv
2506.01939), `covariance` (see covariance.py) and `entropy_target` (see entropy.py).

A guide's token, under a method that does not treat it in another way, counts as one that the policy wrote: its ratio is
taken against the policy before the update. A sampler's log-probs it has none: it is left out of `correction`.

Groups without spread: with `flat_groups: leave_out` they are not trained and not counted, so that the size of a step
does not depend on how many questions were too easy or too hard, and no time goes into rows without a gradient. That is
the default. `keep` is TRL's convention: they stay in the denominators (one informative group of eight has an eighth of
the gradient) and get KL and entropy. The clipping of the gradient and the weight of KL feel the difference; Adam hardly
does.

`kl_clamp` bounds k3 of a token, as verl does at 10. A token beyond it has no gradient, so the default is no bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from aurify.algorithms.correction import Correction
from aurify.algorithms.covariance import strip_covariance
from aurify.algorithms.effects import Effect, Effects, check_algorithm_options, stage_has
from aurify.algorithms.entropy import EntropyController, keep_top_entropy
from aurify.algorithms.estimators import Scale, group_advantages
from aurify.algorithms.hooks import Hooks
from aurify.algorithms.turns import turn_advantages
from aurify.bounds import Checked, Gt, Interval, NonNegativeFloat, PositiveFloat
from aurify.errors import UserError
from aurify.types import Batch, Datum, Group, Lesson, Need, Outputs, Per, Policy, Sums

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class GRPO(Checked, Hooks):
    scale: Scale = "group"  # what advantages are divided by: deviation of the group, of the batch, or nothing
    credit: Literal["rollout", "turn"] = "rollout"  # one advantage a rollout, or one a turn; see algorithms/turns.py
    discount: Annotated[float, Interval(gt=0, le=1)] = 1.0  # of what later turns earn
    surrogate: Literal["clip", "plain"] = "clip"  # plain: no clipping of the ratio
    clip_low: NonNegativeFloat = 0.2  # the ratio is clipped below 1 - clip_low
    clip_high: NonNegativeFloat = 0.2  # the ratio is clipped above 1 + clip_high
    dual_clip: Annotated[float, Gt(1), "3 is usual"] | None = None  # bounds the loss of negative advantages
    # how token losses become one: mean over tokens, over sequences, or a constant divisor
    aggregator: Literal["token", "sequence", "constant"] = "token"
    constant_length: int | None = None  # for aggregator "constant"; usually sampling.max_tokens
    kl_coef: NonNegativeFloat = 0.0  # weight of the KL to the reference
    kl: Literal["k1", "k2", "k3"] = "k3"  # estimator of the KL
    kl_clamp: Annotated[float, Gt(0), "verl takes 10"] | None = None  # the most that k3 of a token may be
    entropy_coef: float = 0.0  # weight of the entropy bonus
    entropy_target: float | None = None  # nats; the loop then moves entropy_coef
    top_entropy: Annotated[float, Interval(gt=0, le=1), "0.2 is usual, 1 is off"] = 1.0  # share of the tokens of a step
    covariance: Literal["clip", "kl"] | None = None  # what happens to the tokens that cost most entropy
    covariance_share: Annotated[float, Interval(gt=0, lt=1)] = 2e-4  # of the tokens of a step
    covariance_kl_coef: PositiveFloat = 0.1  # weight of the KL of those tokens
    flat_groups: Literal["leave_out", "keep"] = "leave_out"  # groups without spread
    correction: Correction = Correction()  # where the sampler computes otherwise than the trainer

    learns_from: ClassVar[Lesson] = "rollouts"
    min_group: ClassVar[int] = 2
    effects: ClassVar[Effects] = {
        "clip_low": Effect(lambda a: a.surrogate == "clip", "with surrogate: clip"),
        "clip_high": Effect(lambda a: a.surrogate == "clip", "with surrogate: clip"),
        "dual_clip": Effect(lambda a: a.surrogate == "clip", "with surrogate: clip"),
        "discount": Effect(lambda a: a.credit == "turn", "with credit: turn"),
        "constant_length": Effect(lambda a: a.aggregator == "constant", "with aggregator: constant"),
        "kl": Effect(lambda a: a.kl_coef > 0, "with kl_coef above 0"),
        "kl_clamp": Effect(lambda a: a.kl_coef > 0 and a.kl == "k3", "with kl: k3 and kl_coef above 0"),
        "covariance_share": Effect(lambda a: a.covariance is not None, "with covariance: clip or kl"),
        "covariance_kl_coef": Effect(lambda a: a.covariance == "kl", "with covariance: kl", "updates"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregator == "constant" and not self.constant_length:
            raise UserError(
                "grpo.aggregator 'constant' divides by a length: set grpo.constant_length, usually sampling.max_tokens"
            )
        if self.covariance == "kl" and self.surrogate != "plain":
            raise UserError("grpo.covariance: kl replaces the clip; set surrogate: plain, or take covariance: clip")
        check_algorithm_options(self)

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"advantages"}
        if self.kl_coef:
            needs.add("ref_logprobs")
        if self.entropy_coef or self.entropy_target is not None:
            needs.add("entropy")
        if self.covariance == "kl":
            needs.add("old_logprobs")
        return frozenset(needs)

    @property
    def cautions(self) -> list[str]:
        if self.kl_coef and self.kl == "k1":
            return [
                "kl: k1 in the loss has an expected gradient of zero: it adds noise and holds nothing back. Take k2 or "
                "k3, or reward_kl_coef of rloo and reinforce_pp"
            ]
        return []

    @property
    def per(self) -> Per:
        return "token" if self.aggregator == "token" else "unit"

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        return group_advantages([group.rewards for group in groups], self.scale)

    def turn_advantages(self, groups: Sequence[Group]) -> list[list[list[float]]] | None:
        return turn_advantages(groups, self.scale, self.discount) if self.credit == "turn" else None

    def check_stage(self, stage: Any) -> None:
        if self.credit == "turn" and stage.combine_rewards != "sum":
            raise UserError(
                f"combine_rewards: {stage.combine_rewards} makes one reward of a whole rollout, and credit: turn "
                "shares rewards out among its turns; leave one of them out"
            )
        if self.covariance == "kl" and not stage_has(stage, "updates"):
            raise UserError(
                "covariance: kl holds on to the policy before the update, which with one update a rollout is that of "
                "now; raise num_minibatches or num_epochs, or take covariance: clip"
            )

    def keeps_flat(self, advantages: Sequence[Sequence[float]]) -> bool:
        """Only where anything of the step has a gradient: KL and entropy act whatever the advantages are."""
        if self.flat_groups == "leave_out":
            return False
        return bool(self.needs & {"ref_logprobs", "entropy"}) or any(any(values) for values in advantages)

    def make_controller(self) -> EntropyController | None:
        return None if self.entropy_target is None else EntropyController(self.entropy_target, self.entropy_coef)

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        """With `top_entropy`, tokens below the quantile of the step, over all ranks, get advantage 0. They stay in the
        denominator, as in TRL."""
        data = list(data)
        if self.top_entropy < 1:
            entropies = policy.entropies(data, temperature=temperature)
            data = keep_top_entropy(data, entropies, self.top_entropy, policy.over_ranks)
        if self.covariance is not None:
            now = policy.logprobs(data, temperature=temperature)
            coef = self.covariance_kl_coef if self.covariance == "kl" else None
            data = strip_covariance(data, now, self.covariance_share, coef, policy.over_ranks)
        return data

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        now = out.logprobs.detach()
        old = self.ratio_base(now, batch)
        ratio = (out.logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        losses, metrics = self.surrogate_losses(out, batch, ratio)
        if batch.logprobs is not None:
            trust, told = self.correction.weigh(old, batch, now)
            losses, metrics = trust * losses, metrics | told
        if self.kl_coef:
            assert batch.ref_logprobs is not None
            divergence = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl, self.kl_clamp)
            losses = losses + self.kl_coef * divergence
            metrics["loss/kl"] = divergence.detach()
        if out.entropy is not None:
            losses = losses - self.entropy_coef * out.entropy
            metrics["loss/entropy"] = out.entropy.detach()
        metrics["loss/ratio"] = ratio.detach()
        return self.total(losses, batch, self.constant_length), {
            name: self.total(values, batch) for name, values in metrics.items()
        }

    def ratio_base(self, now: Tensor, batch: Batch) -> Tensor:
        """[tokens] what the policy of now is compared with: log-probs of the policy before the update."""
        return now if batch.old_logprobs is None else batch.old_logprobs

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
        """[tokens] -> the sum that belongs to `per`. Metrics give no length: they are means over rollouts."""
        weighted = batch.weights * values
        if self.aggregator == "token":
            return weighted.sum()
        if self.aggregator == "constant" and constant_length is not None:
            return weighted.sum() / constant_length
        return batch.mean_by_unit(values).sum()


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"], clamp: float | None = None
) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi; k3 is never negative and has less variance than k1.
    clamp: the most that k3 may be."""
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    estimate = (-difference).exp() + difference - 1
    return estimate if clamp is None else estimate.clamp(max=clamp)

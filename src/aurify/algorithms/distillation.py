"""On-policy distillation (GKD, arXiv 2306.13649): the student writes, and a teacher judges every token. What falls is
the divergence of the two distributions at the places that the student visits:

    reverse   KL(student || teacher)
    forward   KL(teacher || student)
    jsd       beta KL(teacher || m) + (1 - beta) KL(student || m), with m = beta teacher + (1 - beta) student

`vocabulary: full` sums over all tokens that might have come next (engine/divergence.py). It is exact, and costs the
heads of both models at the trained positions. `sampled` needs log-probs of the sampled tokens alone: with
r = p_teacher / p_student the gradient of E_student[f(r)] is that of a reward a token,

    reverse   log r        forward   r - 1        jsd   (1 - beta) log(beta r + 1 - beta)

on average, where `forward` varies most: r is bounded by max_ratio. Both leave out, as the paper does, that other
weights visit other places. `full` is the default: it has no noise of sampling, and saves the student's forward pass for
its old log-probs. `sampled` is for teachers of whom log-probs are all there is.

Temperature is that of the stage's sampling, for both models, as in TRL (without its square as a factor); the paper
trains at 1. The stage names the `teacher`; no reward is needed. With `vocabulary: full` a stage's `guidance` gives the
paper's share of fixed data: num_off / completions_per_prompt is its 1 - lambda."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from aurify.algorithms.effects import NEVER, Effect, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import Gt, Interval
from aurify.errors import UserError
from aurify.types import Batch, Datum, Divergence, Group, Need, Outputs, Policy

CLIPS = ("clip_low", "clip_high", "dual_clip")


@dataclass(frozen=True)
class Distillation(GRPO):
    divergence: Divergence = "reverse"  # forward: KL(teacher || student), reverse: KL(student || teacher), jsd: between
    beta: Annotated[float, Interval(gt=0, lt=1)] = 0.5  # jsd: towards 0 it becomes like forward, towards 1 like reverse
    vocabulary: Literal["full", "sampled"] = "full"  # full: over all tokens; sampled: over those that were sampled
    max_ratio: Annotated[float, Gt(1)] = 20.0  # vocabulary sampled: bound of p_teacher / p_student
    surrogate: Literal["clip", "plain"] = "plain"

    min_group: ClassVar[int] = 1
    flattens: ClassVar[bool] = False
    sums_rewards: ClassVar[bool] = False
    needs_reward: ClassVar[bool] = False  # the teacher judges answers, also those that no reward applies to
    effects: ClassVar[Effects] = {
        **{
            name: Effect(
                lambda a: a.vocabulary == "sampled" and a.surrogate == "clip",
                "with vocabulary: sampled and surrogate: clip",
            )
            for name in CLIPS
        },
        "surrogate": Effect(lambda a: a.vocabulary == "sampled", "with vocabulary: sampled"),
        "max_ratio": Effect(lambda a: a.vocabulary == "sampled", "with vocabulary: sampled"),
        "beta": Effect(lambda a: a.divergence == "jsd", "with divergence: jsd"),
        **dict.fromkeys(("scale", "credit", "discount", "flat_groups", "kl", "kl_clamp"), NEVER),
        **dict.fromkeys(("covariance", "covariance_share", "covariance_kl_coef"), NEVER),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_coef:
            raise UserError("distillation.kl_coef: the teacher replaces the reference; leave it at 0")

    @property
    def needs(self) -> frozenset[Need]:
        if self.vocabulary == "full":
            return super().needs | {"teacher_divergence"}
        return super().needs | {"teacher_logprobs", "old_logprobs"}

    def check_stage(self, stage: Any) -> None:
        super().check_stage(stage)
        if self.vocabulary == "sampled" and (stage.guidance or stage.replay):
            raise UserError(
                f"{stage.method} with vocabulary: sampled learns from what the student wrote just now; with guidance "
                "or replay choose vocabulary: full"
            )

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """Every answer teaches, whatever it earned: the teacher's numbers come later."""
        return [[1.0] * len(group.trajectories) for group in groups]

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        if self.vocabulary == "sampled":
            data = [self.judged(datum) for datum in data]
        return super().prepare(data, policy, temperature)

    def judged(self, datum: Datum) -> Datum:
        assert datum.ref_logprobs is not None and datum.old_logprobs is not None
        pairs = zip(datum.ref_logprobs, datum.old_logprobs, strict=True)
        return replace(datum, advantages=[self.reward(teacher - student) for teacher, student in pairs])

    def reward(self, log_ratio: float) -> float:
        bound = math.log(self.max_ratio)
        log_ratio = max(-bound, min(bound, log_ratio))
        if self.divergence == "reverse":
            return log_ratio
        if self.divergence == "forward":
            return math.exp(log_ratio) - 1
        return (1 - self.beta) * math.log(self.beta * math.exp(log_ratio) + 1 - self.beta)

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """In full, an advantage only says how much a token counts: 1, or 0 where `top_entropy` leaves it out."""
        if self.vocabulary == "sampled":
            return super().surrogate_losses(out, batch, ratio)
        assert out.divergence is not None and batch.advantages is not None
        divergence = out.divergence(self.divergence, self.beta)
        return batch.advantages * divergence, {"loss/divergence": divergence.detach()}

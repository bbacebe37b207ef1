"""On-policy distillation (arXiv 2306.13649): the student writes, and every token is judged by a teacher. What falls is
the divergence of the two distributions at the places that the student visits. Only log-probs of sampled tokens are
needed: with r = p_teacher / p_student the gradient of E_student[f(r)] is that of a reward a token,

    reverse   KL(student || teacher)    log r
    forward   KL(teacher || student)    r - 1
    jsd       generalised Jensen-Shannon with weight beta of the teacher    (1 - beta) log(beta r + 1 - beta)

exactly, on average (the change of which places are visited is left out, as in the paper). `forward` has the highest
variance: r is bounded by max_ratio. The stage names the `teacher`; no reward is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aurify.algorithms.grpo import GRPO
from aurify.errors import UserError
from aurify.types import Datum, Group, Need, Policy


@dataclass(frozen=True)
class Distillation(GRPO):
    divergence: Literal["reverse", "forward", "jsd"] = "reverse"
    beta: float = 0.5  # jsd: 0 is the limit of reverse, 1 of forward
    max_ratio: float = 20.0
    surrogate: Literal["clip", "plain"] = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_coef:
            raise UserError("distillation.kl_coef: the teacher takes the place of the reference; leave it at 0")
        if not 0 < self.beta < 1 or self.max_ratio <= 1:
            raise UserError(f"distillation: beta {self.beta} must be in (0, 1) and max_ratio {self.max_ratio} above 1")

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"teacher_logprobs", "old_logprobs"}

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """Every answer teaches, whatever it earned: the teacher's numbers come in `prepare`."""
        return [[1.0] * len(group.trajectories) for group in groups]

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        judged = []
        for datum in data:
            assert datum.ref_logprobs is not None and datum.old_logprobs is not None
            pairs = zip(datum.ref_logprobs, datum.old_logprobs, strict=True)
            judged.append(replace(datum, advantages=[self.reward(teacher - student) for teacher, student in pairs]))
        return super().prepare(judged, policy, temperature)

    def reward(self, log_ratio: float) -> float:
        bound = math.log(self.max_ratio)
        log_ratio = max(-bound, min(bound, log_ratio))
        if self.divergence == "reverse":
            return log_ratio
        if self.divergence == "forward":
            return math.exp(log_ratio) - 1
        return (1 - self.beta) * math.log(self.beta * math.exp(log_ratio) + 1 - self.beta)

"""DAPO (arXiv 2503.14476): a higher upper clip keeps unlikely tokens alive, the mean is taken over the tokens of the
step, and answers that come near the length limit lose reward before groups are compared:

    penalty = 0 up to max_length - buffer, then falling to -1 at max_length

Its fourth part, drawing groups without spread again, is `dynamic_sampling` of the stage. The paper looks at the spread
of accuracy, which is `dynamic_sampling_by: accuracy`: answers that are all right still differ by the penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aurify.algorithms.effects import Effect, Effects
from aurify.algorithms.estimators import group_advantages
from aurify.algorithms.grpo import GRPO
from aurify.bounds import NonNegativeFloat, NonNegativeInt
from aurify.errors import UserError
from aurify.types import Group


@dataclass(frozen=True)
class DAPO(GRPO):
    clip_high: NonNegativeFloat = 0.28
    max_length: int | None = None  # sampled tokens, usually sampling.max_tokens; null: no penalty
    buffer: NonNegativeInt = 0  # tokens before max_length in which the penalty grows

    effects: ClassVar[Effects] = {
        "credit": Effect(lambda a: a.max_length is None, "without max_length, whose penalty is for the whole")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.max_length is None) != (self.buffer == 0):
            raise UserError(f"dapo: max_length {self.max_length} and buffer {self.buffer} belong together; set both")
        if self.max_length is not None and self.buffer > self.max_length:
            raise UserError(f"dapo.buffer: {self.buffer} is more than max_length {self.max_length}")

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        rewards = [
            [None if t.reward is None else t.reward + self.penalty(t.num_policy_tokens) for t in group.trajectories]
            for group in groups
        ]
        return group_advantages(rewards, self.scale)

    def penalty(self, length: int) -> float:
        if self.max_length is None:
            return 0.0
        return max(-1.0, min(0.0, (self.max_length - self.buffer - length) / self.buffer))

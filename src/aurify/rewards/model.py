"""A trained reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aurify.types import Datum, Task, Trajectory


class Scorer(Protocol):
    """An engine with a scalar head."""

    def scores(self, data: Sequence[Datum]) -> list[float]: ...


class ModelReward:
    """Scores the very tokens that were sampled, as the reward model was trained on them: prompt, reply, end token."""

    threaded = False  # its model is computed with all cores, in the thread that made it

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.__name__ = "reward_model"

    def __call__(self, task: Task, trajectory: Trajectory) -> float:
        return self.batch(task, [trajectory])[0]

    def batch(self, task: Task, trajectories: Sequence[Trajectory]) -> list[float]:
        """One call for a whole group: its prompt is computed once. Of several rows, the last holds the whole
        conversation, as the chat template writes it."""
        rows = [[token for segment in t.rows[-1] for token in segment.tokens] for t in trajectories]
        return self.scorer.scores([Datum(tokens, [0.0] * len(tokens)) for tokens in rows])

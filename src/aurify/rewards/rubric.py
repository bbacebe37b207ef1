"""Scores trajectories by a weighted list of reward functions, and keeps the breakdown.

A reward function is any callable, plain or async. Ours: `(task, trajectory) -> float | None`. TRL's works unchanged:
`(prompts, completions, **columns) -> list[float | None]`. None means "does not apply" and is masked, not zero. So is a reward that
raises or is not a number: it says nothing about the answer. It is counted, and where it happens to a whole group it is an error."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.errors import UserError
from aurify.types import Task, Trajectory

RewardFunction = Callable[..., Any]


@dataclass(frozen=True)
class Reward:
    function: RewardFunction
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def batched(self) -> bool:
        """TRL's signature: it takes whole lists. (Ours may have a method `batch(task, trajectories)` to the same end.)"""
        return "completions" in inspect.signature(self.function).parameters

    async def __call__(self, task: Task, trajectories: Sequence[Trajectory]) -> list[Any]:
        """A value, or the exception that came instead, for each trajectory."""
        batch = getattr(self.function, "batch", None)
        if self.batched or batch:
            try:
                call = batch(task, trajectories) if batch else self.function(**self.columns(task, trajectories))
                values = await resolved(call)
                if len(values) != len(trajectories):
                    raise ValueError(f"returned {len(values)} values for {len(trajectories)} completions")
                return list(values)
            except Exception as error:
                return [error] * len(trajectories)
        results: list[Any] = []
        for trajectory in trajectories:
            try:
                results.append(await resolved(self.function(task, trajectory)))
            except Exception as error:
                results.append(error)
        return results

    def columns(self, task: Task, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """Those of TRL's keyword arguments that the function takes."""
        num = len(trajectories)
        columns = {name: [value] * num for name, value in {**task.info, "answer": task.answer}.items()}
        columns |= {
            "prompts": [list(task.prompt)] * num,
            "completions": [trajectory.completion for trajectory in trajectories],
            "completion_ids": [[t for s in trajectory.segments if s.origin == "policy" for t in s.tokens] for trajectory in trajectories],
        }
        parameters = inspect.signature(self.function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return columns
        return {name: value for name, value in columns.items() if name in parameters}


async def resolved(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


class Rubric:
    """rewards: functions, or (function, weight) or (function, weight, name), or `Reward`s."""

    def __init__(self, rewards: Sequence[Any]) -> None:
        self.rewards = [
            reward if isinstance(reward, Reward) else Reward(*reward) if isinstance(reward, tuple) else Reward(reward)
            for reward in rewards
        ]
        names = Counter(reward.name for reward in self.rewards)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise UserError(f"rewards: the name {repeated[0]!r} is used twice; give each reward its own")
        self.failures: dict[str, str] = {}  # reward -> the first thing that went wrong
        self.num_failures: Counter[str] = Counter()

    def plus(self, *rewards: Any) -> Rubric:
        return Rubric([*self.rewards, *rewards])

    async def score(self, task: Task, trajectories: Sequence[Trajectory]) -> None:
        """Fills `rewards` (the breakdown) and `reward` (the weighted sum of those that apply) of every trajectory.

        What the environment gave on the way counts with weight 1."""
        for trajectory in trajectories:
            given = list(trajectory.rewards.values())
            trajectory.reward = math.fsum(value for value in given if value is not None) if given else None
        for reward in self.rewards:
            values = await reward(task, trajectories)
            problems = [problem(value) for value in values]
            for trajectory, value, wrong in zip(trajectories, values, problems, strict=True):
                valid = None if wrong or value is None else float(value)
                trajectory.rewards[reward.name] = valid
                if valid is not None:
                    trajectory.reward = (trajectory.reward or 0.0) + reward.weight * valid
            self._count(reward, task, problems)

    def _count(self, reward: Reward, task: Task, problems: Sequence[str | None]) -> None:
        wrong = [text for text in problems if text]
        if not wrong:
            return
        self.num_failures[reward.name] += len(wrong)
        self.failures.setdefault(reward.name, wrong[0])
        if len(wrong) == len(problems):
            raise UserError(
                f"reward {reward.name!r} failed for all {len(wrong)} completions of task {task.id!r}: {wrong[0]}. "
                "Mend the reward; let it return None where it does not apply"
            )


def problem(value: Any) -> str | None:
    if isinstance(value, Exception):
        return f"it raised {type(value).__name__}: {value}"
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return f"it returned {value!r}, which is no number"
    return None if math.isfinite(float(value)) else f"it returned {float(value)}"

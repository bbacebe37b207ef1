"""Rewards for answers that are text: equality, shape and length."""

from __future__ import annotations

import re
from collections.abc import Callable

from aurify.errors import UserError
from aurify.types import Task, Trajectory


def normalised(text: str) -> str:
    """Lower case, white space collapsed, no closing full stop."""
    return " ".join(text.lower().split()).removesuffix(".")


def exact_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the reply is the answer, apart from case, white space and a closing full stop."""
    return None if task.answer is None else float(normalised(trajectory.text) == normalised(task.answer))


def contains_answer(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the answer stands somewhere in the reply. Hacked by listing everything: a first signal, not a goal."""
    return None if task.answer is None else float(normalised(task.answer) in normalised(trajectory.text))


def format_match(pattern: str) -> Callable[[Task, Trajectory], float]:
    """1 if the whole reply matches a regular expression, such as `<think>.*</think>.*`."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"reward 'format': {pattern!r} is no regular expression: {error}") from error

    def matches(task: Task, trajectory: Trajectory) -> float:
        return float(compiled.fullmatch(trajectory.text.strip()) is not None)

    return matches


def length_penalty(max_tokens: int, over: int) -> Callable[[Task, Trajectory], float]:
    """0 up to `max_tokens` sampled tokens, falling to -1 at `max_tokens + over` (the soft overlong penalty of DAPO)."""
    if over < 1:
        raise UserError(f"reward 'length': over is {over}; it must be at least 1 token")

    def penalty(task: Task, trajectory: Trajectory) -> float:
        return -min(1.0, max(0.0, (trajectory.num_policy_tokens - max_tokens) / over))

    return penalty

"""Rewards for answers that are numbers."""

from __future__ import annotations

import re
from decimal import Decimal

from aurify.types import Task, Trajectory

# a minus belongs to a number unless a digit stands before it: "3-5" is 3 and 5; a comma may only separate thousands
NUMBER = re.compile(r"(?<!\d)[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def numbers_in(text: str) -> list[Decimal]:
    return [Decimal(found.replace(",", "").replace("\u2212", "-")) for found in NUMBER.findall(text)]


def number_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the last number of the reply, where people put their answer, is the answer (18 = 18.0), else 0."""
    if task.answer is None:
        return None
    expected = numbers_in(task.answer)
    if not expected:
        raise ValueError(f"the answer {task.answer!r} of task {task.id!r} is no number; use exact_match")
    return float(numbers_in(trajectory.text)[-1:] == expected[-1:])


def numbers_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the reply ends with the numbers of the answer in their order, however they are separated."""
    if task.answer is None:
        return None
    expected = numbers_in(task.answer)
    return float(numbers_in(trajectory.text)[-len(expected) :] == expected)

"""Rewards for answers that are numbers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from aurify.types import Task, Trajectory

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> str | None:
    """The last number in a text, thousands separators removed: the place where people put their answer."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def same_number(a: str, b: str) -> bool:
    try:
        return Decimal(a.replace(",", "")) == Decimal(b.replace(",", ""))
    except InvalidOperation:
        return False


def number_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the last number of the reply equals the answer (18 = 18.0 = "18,"), else 0."""
    if task.answer is None:
        return None
    found = last_number(trajectory.text)
    return float(found is not None and same_number(found, task.answer))

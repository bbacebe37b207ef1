"""Rewards for answers that are numbers, or mathematics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Literal

from aurify.errors import UserError
from aurify.rewards.equality import require_math_verify, workers
from aurify.types import Task, Trajectory

Extract = Literal["any", "boxed"]

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


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...}, braces balanced; None if there is none or it is open."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None


ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MARKED = re.compile(r"(?:####|answer\s*(?:is|:|=))\s*([^\n]+)", re.IGNORECASE)
ENDS_THINKING = "</think>"


def final_answer(text: str, extract: Extract = "any") -> str | None:
    """The answer that a reply settles on: its last box; else, unless extract is "boxed", what stands in its last
    <answer> tag, after its last `####` or "answer is", or else its last number."""
    text = text.rpartition(ENDS_THINKING)[2]
    boxed = last_boxed(text)
    if boxed is not None or extract == "boxed":
        return boxed
    for pattern in (ANSWER_TAG, MARKED):
        if found := pattern.findall(text):
            return tidied(found[-1])
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def tidied(answer: str) -> str:
    """Without dollar signs, emphasis and a closing full stop around it."""
    return answer.strip().strip("*$").strip().removesuffix(".").strip("*$ ").strip()


def as_number(text: str) -> Decimal | None:
    match = NUMBER.fullmatch(text.strip().strip("$").strip())
    return numbers_in(match.group())[0] if match else None


def golds_of(task: Task) -> list[str]:
    """The right answers: the column `answers` if the task has one, else its answer."""
    several = task.info.get("answers")
    golds = list(several) if several else [task.answer] if task.answer is not None else []
    return [last_boxed(str(gold)) or tidied(str(gold).rpartition("####")[2]) for gold in golds]


def math(extract: Extract = "any", seconds: float = 5.0) -> Callable[[Task, Trajectory], Awaitable[float | None]]:
    """1 if the final answer equals one of the task's answers as mathematics: 0.5 = 1/2, x(x+1) = x^2 + x. What cannot
    be compared within `seconds` counts as wrong. extract: "boxed" wants it in a box."""
    if extract not in ("any", "boxed"):
        raise UserError(f"reward 'math': extract is {extract!r}; expected 'any' or 'boxed'")
    if not seconds > 0:
        raise UserError(f"reward 'math': seconds is {seconds}; it must be above 0")
    require_math_verify()

    async def equals(task: Task, trajectory: Trajectory) -> float | None:
        golds = golds_of(task)
        if not golds:
            return None
        answer = final_answer(trajectory.text, extract)
        if not answer:
            return 0.0
        if answer in golds:
            return 1.0
        number, numbers = as_number(answer), [as_number(gold) for gold in golds]
        if number is not None and None not in numbers:
            return float(number in numbers)
        return float(await asyncio.to_thread(workers().equal, golds, answer, seconds))

    return equals

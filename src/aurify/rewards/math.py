"""Rewards for answers that are numbers, or mathematics."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from aurify.errors import UserError
from aurify.files import require
from aurify.rewards.answers import (
    Extract,
    extract_answer,
    final_answer,
    read_answer_boxes,
    read_gold_answers,
    read_short_answer,
    strip_answer_marks,
    take_answer,
)
from aurify.rewards.equality import open_answer_comparers
from aurify.rewards.notation import compare_answers
from aurify.rewards.numbers import last_number, list_numbers
from aurify.types import Task, Trajectory


def number_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the last number of the reply, where people put their answer, is the answer (18 = 18.0), else 0."""
    golds = read_gold_answers(task)
    if not golds:
        return None
    expected = [last_number(gold) for gold in golds]
    if None in expected:
        wrong = golds[expected.index(None)]
        raise ValueError(f"the answer {wrong!r} of task {task.id!r} is no number; use exact_match or math")
    return float(last_number(take_answer(trajectory) or "") in expected)


def numbers_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the reply ends with the numbers of the answer in their order, however they are separated."""
    if task.answer is None:
        return None
    expected = list_numbers(task.answer)
    if not expected:
        raise ValueError(f"the answer {task.answer!r} of task {task.id!r} holds no number; use exact_match")
    return float(list_numbers(take_answer(trajectory) or "")[-len(expected) :] == expected)


def math(extract: Extract = "any", seconds: float = 5.0) -> Callable[[Task, Trajectory], Awaitable[float | None]]:
    """1 if the final answer equals one of the task's answers as mathematics: 0.5 = 1/2, x(x+1) = x^2 + x. What cannot
    be compared within `seconds` counts as wrong. extract: "boxed" wants it in a box."""
    if extract not in ("any", "boxed"):
        raise UserError(f"reward 'math': extract is {extract!r}; expected 'any' or 'boxed'")
    if not seconds > 0:
        raise UserError(f"reward 'math': seconds is {seconds}; it must be above 0")
    require("math_verify", "math", "to compare_answers answers as mathematics")

    async def equals(task: Task, trajectory: Trajectory) -> float | None:
        golds = [extract_gold(gold) for gold in read_gold_answers(task)]
        if not golds:
            return None
        reply = take_answer(trajectory) or ""
        whole = read_short_answer(reply) if extract == "any" else None
        if whole and any(compare_answers(whole, gold) is True for gold in golds):
            return 1.0
        answer = extract_answer(reply, extract)
        if not answer:
            return 0.0
        unsettled: dict[str, list[str]] = defaultdict(list)
        for gold in golds:
            settled = compare_answers(answer, gold)
            if settled is True:
                return 1.0
            if settled:
                unsettled[settled[0]].append(settled[1])
        for said, wanted in unsettled.items():
            if await asyncio.to_thread(open_answer_comparers().equal, wanted, said, seconds):
                return 1.0
        return 0.0

    return equals


def extract_gold(text: str) -> str:
    """The answer in a right answer, which may be a whole solution."""
    text = final_answer(text) or text
    return read_answer_boxes(text) or strip_answer_marks(text.rpartition("####")[2])

"""One reward for mixed data: chooses how to judge an answer by the kind that the task declares, else by its shape."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from aurify import registry
from aurify.config import did_you_mean
from aurify.rewards.answers import read_gold_answers
from aurify.rewards.code_tests import has_code_tests
from aurify.rewards.numbers import as_number
from aurify.threads import settle_call
from aurify.types import Task, Trajectory

KINDS = {  # Task.info["kind"] -> reward
    "number": "number_match",
    "numbers": "numbers_match",
    "math": "math",
    "code": "code",
    "function_call": "function_call",
    "choice": "choice_match",
    "exact": "exact_match",
    "text": "rouge_l",
}
MATHEMATICAL = re.compile(r"\\[a-zA-Z]+|\$|\d\s*[-+*/^=]\s*[\da-zA-Z(]|[a-zA-Z)]\s*[-+*/^=]\s*\d|\^|[²³√½π≤≥∞]")
MAX_WORDS = 8  # a longer answer is hardly ever said in the same words


async def auto(task: Task, trajectory: Trajectory) -> float | None:
    """Chooses the reward by the task: number, math, code, choice and so on. See `kind_of` for the rule."""
    reward = load_reward(KINDS[kind_of(task)])
    value: float | None = await settle_call(reward, task, trajectory)
    return value


def check_task_kind(task: Task) -> None:
    """Raises where the kind is not to be seen, or tests could not judge (see `Rubric.check_tasks`)."""
    if kind_of(task) == "code":
        load_reward("code").check_task(task)


auto.check_task = check_task_kind  # type: ignore[attr-defined]


def kind_of(task: Task) -> str:
    """1. The column `kind`, if the task has one. 2. Tests, or inputs and outputs: code. 3. Calls: function_call.
    4. By the answer: one number, number; one capital letter, choice; LaTeX, or an expression: math; up to eight words,
    exact. Everything else is an error, since guessing how to judge it would be worse."""
    declared = task.info.get("kind")
    if declared is not None:
        if declared not in KINDS:
            raise ValueError(f"task {task.id!r} has the kind {declared!r}{did_you_mean(str(declared), KINDS)}")
        return str(declared)
    if has_code_tests(task.info):
        return "code"
    if task.info.get("calls") is not None:
        return "function_call"
    answers = read_gold_answers(task)
    if not answers:
        raise ValueError(f"task {task.id!r} has no answer, no tests and no calls to judge by; give it a column 'kind'")
    answer = answers[0].strip()
    if as_number(answer) is not None:
        return "number"
    if re.fullmatch(r"\(?[A-Z]\)?\.?", answer):
        return "choice"
    if MATHEMATICAL.search(answer) and len(answer) < 200:
        return "math"
    if 0 < len(answer.split()) <= MAX_WORDS:
        return "exact"
    raise ValueError(
        f"task {task.id!r}: the answer {answer[:60]!r} does not show how to judge it; give the task a column 'kind', "
        f"one of {', '.join(KINDS)}"
    )


@functools.cache
def load_reward(name: str) -> Any:
    """The reward of that name; with its defaults where it has options."""
    found = registry.get_entry("reward", name)
    return found if "trajectory" in inspect.signature(found).parameters else found()

"""Tasks out of rows: GSM8K, and any JSONL file of people's own with a prompt and an answer column."""

from __future__ import annotations

from typing import Any

from aurify import registry
from aurify.data.sources import load_hub, load_rows
from aurify.errors import UserError
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.tasks.taskset import TaskSet, listed, question
from aurify.types import Task

GSM8K_HUB = "openai/gsm8k"


def gsm8k(path: str | None = None, num_heldout: int = 100, system: str | None = None) -> TaskSet:
    """Grade-school word problems. path: JSONL with `question` and `answer` (ending in '#### number'); without it, the hub."""
    rows = load_rows(path) if path else load_hub(GSM8K_HUB, "main", "train")
    tasks, demonstrations = [], {}
    for index, row in enumerate(rows):
        solution = row.text("answer")
        _, found, answer = solution.rpartition("####")
        if not found:
            raise UserError(f"{row.place}: 'answer' has no '#### number' at its end: {solution[-60:]!r}")
        task = Task(f"gsm8k/{index}", question(row.text("question"), system), answer.strip())
        tasks.append(task)
        demonstrations[task.id] = solution
    return listed("gsm8k", tasks, Rubric([number_match]), num_heldout=num_heldout, demonstration=lambda task: demonstrations[task.id])


def jsonl(
    path: str,
    prompt: str = "prompt",
    answer: str = "answer",
    reward: str | list[Any] = "exact_match",
    num_heldout: int | None = None,
    system: str | None = None,
) -> TaskSet:
    """prompt, answer: names of columns; the prompt is a text or a list of messages. reward: one name, or a list of names or of
    [name, weight]. Every other column reaches reward functions by its name. num_heldout: a tenth, if not given."""
    rows = load_rows(path)
    tasks = []
    for index, row in enumerate(rows):
        given = row.need(prompt)
        messages = given if isinstance(given, list) else question(row.text(prompt), system)
        info = {key: value for key, value in row.items() if key not in (prompt, answer)}
        tasks.append(Task(f"{path}/{index}", messages, row.text(answer), info))
    chosen = [reward] if isinstance(reward, str) else reward
    pairs = [(entry, 1.0) if isinstance(entry, str) else tuple(entry) for entry in chosen]
    rubric = Rubric([(registry.get("reward", name), weight, name) for name, weight in pairs])
    return listed(path, tasks, rubric, num_heldout=num_heldout or max(1, len(tasks) // 10))

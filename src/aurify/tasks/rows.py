"""Tasks out of rows: GSM8K, and any JSONL file of people's own with a prompt and an answer column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aurify.data.gsm8k import TIDIED, solution_text, split_answer
from aurify.data.messages import messages_of
from aurify.data.sources import Row, load_hub, load_rows
from aurify.errors import UserError
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric, build_rubric
from aurify.tasks.taskset import TaskSet, listed, question
from aurify.types import Task

GSM8K = "openai/gsm8k"


def gsm8k(
    path: str | None = None,
    heldout_path: str | None = None,
    num_heldout: int | None = None,
    system: str | None = None,
) -> TaskSet:
    """Grade-school word problems (Cobbe et al. 2021). path, heldout_path: JSONL files with `question` and `answer`,
    which ends in '#### number'; without a path, both splits of the hub. num_heldout: so many of those held out."""

    def task(row: Row) -> Task:
        answer = row.text("answer")
        parts = split_answer(answer)
        if parts is None:
            raise UserError(f"{row.place}: 'answer' ends in {answer[-40:]!r}; expected '#### number' at its end")
        shown = solution_text(*parts)
        return Task(row.place, question(row.text("question"), system), parts[1], {"solution": shown})

    heldout = None
    if path is None:
        rows, heldout = load_hub(GSM8K, "main", "train"), load_hub(GSM8K, "main", "test")
    else:
        rows = load_rows(path)
        heldout = load_rows(heldout_path) if heldout_path else None
    taskset = listed(
        "gsm8k",
        [task(row) for row in rows],
        Rubric([number_match]),
        num_heldout=num_heldout,
        heldout=None if heldout is None else [task(row) for row in heldout[:num_heldout]],
        demonstration=lambda task: task.info["solution"],
    )
    return told(taskset, [*rows, *(heldout or ())])


def told(taskset: TaskSet, rows: Sequence[Row]) -> TaskSet:
    """With a note of how many rows were changed on reading."""
    num = sum(row.tidied for row in rows)
    note = f"task {taskset.name}: {num:,} of {len(rows):,} rows changed: {TIDIED}"
    return replace(taskset, notes=(*taskset.notes, note)) if num else taskset


def jsonl(
    path: str,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    reward: Any = "exact_match",
    heldout_path: str | None = None,
    num_heldout: int | None = None,
    system: str | None = None,
) -> TaskSet:
    """A file of people's own. The prompt is a text or a list of messages; answer_column: null if no reward needs one.
    reward: a name or a list, see `build_rubric`. Further columns reach reward functions by their names. Held out are
    the rows of `heldout_path`, or num_heldout of `path` (a tenth, if not given)."""

    def tasks(rows: Sequence[Row]) -> list[Task]:
        return [Task(row.place, prompt(row), answer(row), info(row), is_plain(row)) for row in rows]

    def is_plain(row: Row) -> bool:
        return system is None and isinstance(row.get(prompt_column), str)

    def prompt(row: Row) -> Any:
        if isinstance(row.get(prompt_column), list):
            return messages_of(row, prompt_column)
        return question(row.text(prompt_column), system)

    def answer(row: Row) -> str | None:
        return row.text(answer_column) if answer_column else None

    def info(row: Row) -> dict[str, Any]:
        """Further columns, and those of prompt and answer where they have names of their own: rewards ask for them."""
        known = {prompt_column, answer_column} & {"prompt", "answer"}
        return {name: value for name, value in row.items() if name not in known}

    rows = load_rows(path)
    heldout = load_rows(heldout_path)[:num_heldout] if heldout_path else None
    taskset = listed(
        path,
        tasks(rows),
        build_rubric(reward),
        num_heldout=num_heldout,
        heldout=None if heldout is None else tasks(heldout),
    )
    return told(taskset, [*rows, *(heldout or ())])

"""Tasks out of rows: GSM8K, and any file of people's own with a prompt and an answer column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from aurify.data.prompts import build_row_task, question, read_gold_column, read_question_column
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric, build_rubric
from aurify.rows.columns import PROMPT, find_column
from aurify.rows.gsm8k import join_gsm8k_answer, split_gsm8k_answer
from aurify.rows.row import Row
from aurify.rows.sources import load_hub_rows, load_rows
from aurify.tasks.taskset import TaskSet, listed
from aurify.types import Task

GSM8K = "openai/gsm8k"


def gsm8k(
    path: str | None = None,
    heldout_path: str | None = None,
    num_heldout: int | None = None,
    system: str | None = None,
) -> TaskSet:
    """Grade-school word problems (Cobbe et al. 2021). path, heldout_path: files with `question` and `answer`, which
    ends in '#### number'; without a path, both splits of the hub. num_heldout: so many of those held out."""

    def read(row: Row) -> Task:
        answer = row.text("answer")
        parts = split_gsm8k_answer(answer)
        if parts is None:
            raise row.bad(f"'answer' ends in {answer[-40:]!r}; expected '#### number' at its end")
        return Task(
            row.location, question(row.text("question"), system), parts[1], {"solution": join_gsm8k_answer(*parts)}
        )

    heldout = (
        load_rows(heldout_path) if heldout_path else load_hub_rows(GSM8K, "main", "test") if path is None else None
    )
    rows = load_hub_rows(GSM8K, "main", "train") if path is None else load_rows(path)
    taskset = read_tasks("gsm8k", rows, heldout, num_heldout, read, Rubric([number_match]))
    return replace(taskset, demonstration=lambda task: task.info["solution"])


def jsonl(
    path: str,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    reward: Any = "exact_match",
    heldout_path: str | None = None,
    num_heldout: int | None = None,
    system: str | None = None,
) -> TaskSet:
    """Questions from a file of your own. The prompt is a text or a list of messages; in a file without a column prompt,
    the first one with another usual name, such as question, holds it. answer_column: null if no reward needs one; an
    answer may also stand in a column with another usual name, or where verl keeps it (reward_model: {ground_truth:
    ...}). reward: a name or a list, see `build_rubric`. Further columns reach reward functions by their names. Held out
    are the rows of `heldout_path`, or num_heldout of `path` (a tenth, if not given)."""

    rows = load_rows(path)
    usual = find_column(rows[0], PROMPT, str, list) if prompt_column == "prompt" and "prompt" not in rows[0] else None
    asked = usual or prompt_column
    # rewards get prompt and answer under these names; columns that are called otherwise reach them as well
    known = {asked, answer_column} & {"prompt", "answer"}

    def read(row: Row) -> Task:
        prompt = read_question_column(row, asked, system)
        given = None if answer_column is None or answer_column in row else read_gold_column(row)
        answer = row.text(answer_column) if answer_column and given is None else given
        plain = system is None and isinstance(row.get(asked), str)
        return replace(build_row_task(row, prompt, answer, but=[str(name) for name in known]), plain=plain)

    heldout = load_rows(heldout_path) if heldout_path else None
    return read_tasks(path, rows, heldout, num_heldout, read, build_rubric(reward))


def read_tasks(
    name: str,
    rows: Sequence[Row],
    heldout: Sequence[Row] | None,
    num_heldout: int | None,
    read: Callable[[Row], Task],
    rubric: Rubric,
) -> TaskSet:
    """With a note of how many rows were changed on reading."""
    tasks = list(map(read, rows))
    kept = None if heldout is None else list(map(read, heldout[:num_heldout]))
    taskset = listed(name, tasks, rubric, num_heldout=num_heldout, heldout=kept)
    every = [*rows, *(heldout or ())]
    changes = Counter(change for row in every for change in row.changes)
    notes = (f"task {name}: {num:,} of {len(every):,} rows changed: {change}" for change, num in changes.items())
    return replace(taskset, notes=tuple(notes))

"""Any data set of reasoning-gym (extra `gym`): `gym:chain_sum`, `gym:leg_counting`, ..., each with its own scorer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from aurify.errors import UserError
from aurify.rewards.rubric import Rubric
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Task, Trajectory

HELDOUT_SEED = 1_000_003
TRAIN_SIZE = 100_000  # problems of one epoch; reasoning-gym makes them as they are asked for


def gym(dataset: str, num_heldout: int = 100, **options: Any) -> TaskSet:
    """options go to the data set; a wrong one is an error of reasoning-gym that names it."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError("tasks 'gym:...' need reasoning-gym; install it with: pip install 'aurify[gym]'") from None
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, DATASETS, n=1)
        raise UserError(f"task 'gym:{dataset}': no such data set{f'; did you mean {close[0]!r}?' if close else ''}")

    def make(seed: int, size: int) -> Any:
        try:
            return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise UserError(f"task 'gym:{dataset}': its options {options} are refused: {error}") from error

    scorer = make(HELDOUT_SEED, num_heldout)

    def task(entry: dict[str, Any], key: str) -> Task:
        return Task(f"gym:{dataset}/{key}", question(entry["question"]), entry["answer"], {"entry": entry})

    heldout = [task(entry, f"heldout/{k}") for k, entry in enumerate(scorer)]
    known = {entry.prompt[0]["content"] for entry in heldout}

    def train(seed: int) -> Iterator[Task]:
        entries = make(seed % 2**31, TRAIN_SIZE)
        return (task(e, f"{seed}/{k}") for k, e in enumerate(entries) if e["question"] not in known)

    def score(task: Task, trajectory: Trajectory) -> float:
        return float(scorer.score_answer(trajectory.text.strip(), task.info["entry"]))

    return TaskSet(f"gym:{dataset}", train, heldout, Rubric([(score, 1.0, "score")]))

"""Any data set of reasoning-gym (extra `gym`): `gym:chain_sum`, `gym:leg_counting`, ..., each with its own scorer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.files import require
from aurify.rewards.rubric import Rubric
from aurify.tasks.taskset import TaskSet, digest_task_prompt, question
from aurify.types import Task, Trajectory

HELDOUT_SEED = 1_000_003
TRAIN_SIZE = 100_000  # problems of one epoch; most data sets make them as they are asked for


def gym(dataset: str, num_heldout: int = 100, **options: Any) -> TaskSet:
    """options go to the data set; a wrong one is an error of reasoning-gym that names it."""
    reasoning_gym = require("reasoning_gym", "gym", "for tasks 'gym:...'")
    name, known_names = f"gym:{dataset}", reasoning_gym.factory.DATASETS
    if dataset not in known_names:
        raise UserError(f"task {name!r}: reasoning-gym has no such data set{did_you_mean(dataset, known_names)}")
    if num_heldout < 1:
        raise UserError(f"task {name!r}: num_heldout is {num_heldout}; at least 1 is needed to evaluate")

    def create(seed: int, size: int) -> Any:
        try:
            return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise UserError(f"task {name!r}: reasoning-gym refuses the options {options}: {error}") from error

    def task(entry: dict[str, Any]) -> Task:
        prompt = question(entry["question"].strip())
        return Task(f"{name}/{digest_task_prompt(prompt)}", prompt, entry["answer"], {"entry": entry})

    problems = create(HELDOUT_SEED, num_heldout)
    heldout = list({made.id: made for made in map(task, problems)}.values())
    known = {made.id for made in heldout}

    def train(seed: int) -> Iterator[Task]:
        entries = create(seed % 2**31, TRAIN_SIZE)
        return (made for made in (task(entries[index]) for index in range(TRAIN_SIZE)) if made.id not in known)

    def score(task: Task, trajectory: Trajectory) -> float:
        return float(problems.score_answer(trajectory.text.strip(), task.info["entry"]))

    return TaskSet(name, train, heldout, Rubric([(score, 1.0, "score")]))

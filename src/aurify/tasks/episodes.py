"""Episodes of an environment that has its own data: tasks differ in the seed that it is reset with, and in nothing
else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from aurify.data.prompts import question
from aurify.environments.env import build_environment
from aurify.errors import UserError
from aurify.rewards.rubric import build_rubric
from aurify.tasks.taskset import TaskSet
from aurify.types import Task

MAX_SEED = 2**31


def episodes(environment: Any, prompt: str = "", system: str | None = None, num_heldout: int = 50) -> TaskSet:
    """Episodes of an environment with data of its own, each with its seed; what the environment shows first comes after
    the prompt. All answers of a group play the same episode. Judged by what the environment gives. Held out: the seeds
    from 0."""
    if num_heldout < 1:
        raise UserError(f"task 'episodes': num_heldout is {num_heldout}; at least 1 is needed to evaluate")

    def episode(seed: int) -> Task:
        return Task(f"episodes/{seed}", question(prompt, system), None, {"seed": seed})

    def train(seed: int) -> Iterator[Task]:
        generator = random.Random(f"episodes/train/{seed}")
        while True:
            yield episode(generator.randrange(num_heldout, MAX_SEED))

    heldout = [episode(seed) for seed in range(num_heldout)]
    return TaskSet("episodes", train, heldout, build_rubric("environment"), build_environment(environment))

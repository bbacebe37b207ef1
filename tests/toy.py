"""A plugin for recipes in tests: a task that even a random model learns within seconds."""

from __future__ import annotations

from collections.abc import Iterator

import aurify
from aurify.tasks.taskset import question
from aurify.types import Task, Trajectory


@aurify.task("toy_letters")
def letters() -> aurify.TaskSet:
    """Write small letters only. One byte in ten is one."""

    def share(task: Task, trajectory: Trajectory) -> float:
        return sum("a" <= character <= "z" for character in trajectory.text) / max(1, trajectory.num_policy_tokens)

    def task(key: object) -> Task:
        return Task(f"letters/{key}", question(f"Write ({key})"), "letters")

    def train(seed: int) -> Iterator[Task]:
        return (task(f"{seed % 100}-{number}") for number in range(50))

    return aurify.TaskSet("letters", train, [task(f"held out {k}") for k in range(8)], aurify.Rubric([share]))

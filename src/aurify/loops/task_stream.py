"""The training tasks of an online stage, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from aurify.errors import UserError
from aurify.loops.progress import derive_seed
from aurify.types import Task

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet

PATIENCE = 20  # unwanted tasks in a row, beyond a step's worth, before one of them is taken all the same


class TaskStream:
    """The training tasks in their order, and how many were taken."""

    def __init__(self, taskset: TaskSet, seed: int) -> None:
        self.taskset, self.seed = taskset, seed
        self.rewind(0)

    def rewind(self, taken: int) -> None:
        self.taken = taken
        self.tasks = tasks_from(self.taskset, self.seed, taken)

    def take(self, num: int, avoid: Collection[str] = ()) -> list[Task]:
        """The next tasks whose ids are not to be avoided; where hardly any other is left, those too."""
        chosen: list[Task] = []
        num_avoided = 0
        while len(chosen) < num:
            [task] = islice(self.tasks, 1)
            self.taken += 1
            if task.id in avoid and num_avoided < num + PATIENCE:
                num_avoided += 1
                continue
            num_avoided = 0
            chosen.append(task)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewind(state["taken"])


def tasks_from(taskset: TaskSet, seed: int, begin: int) -> Iterator[Task]:
    """The training tasks from number `begin` on. A finite set starts again, in its own order, when it is used up."""
    number, epoch = 0, 0
    while True:
        first = number
        for task in taskset.train(derive_seed(seed, "tasks", epoch)):
            if number >= begin:
                yield task
            number += 1
        if number == first:
            raise UserError(f"task {taskset.name!r}: there is no training task; look at its options")
        epoch += 1

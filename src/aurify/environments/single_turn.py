"""One question, one answer."""

from __future__ import annotations

from aurify.environments.env import Observation, Step
from aurify.types import Message, Task


class SingleTurn:
    """One question, one answer."""

    threaded = False  # it never blocks

    def __init__(self, task: Task) -> None:
        self.task = task

    async def start(self) -> Observation:
        return Observation(list(self.task.prompt))

    async def step(self, message: Message) -> Step:
        return Step(done=True)

    async def close(self) -> None:
        pass

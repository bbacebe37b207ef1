"""An environment of one's own: what a model acts in, one object for each trajectory. It speaks messages and never sees
a token; Aurify turns its replies into tokens, which are context and never trained.

    task: {name: largest_number, environment: {name: second_chance, chances: 3}}

A task set of one's own may also name it: `TaskSet(..., environment=SecondChance)`."""

from __future__ import annotations

import aurify


@aurify.environment("second_chance")
class SecondChance:
    """Says whether an answer was right, and lets the model try again."""

    def __init__(self, task: aurify.Task, chances: int = 2) -> None:
        self.task, self.chances, self.tries = task, chances, 0

    async def start(self) -> aurify.Observation:
        return aurify.Observation(list(self.task.prompt))

    async def step(self, message: aurify.Message) -> aurify.Step:
        self.tries += 1
        right = message["content"].strip() == self.task.answer
        if right or self.tries == self.chances:
            return aurify.Step(done=True, metrics={"tries": float(self.tries)})  # recorded as rollout/tries
        return aurify.Step([{"role": "user", "content": "No."}])

    async def close(self) -> None:
        """Called at the end, whatever happened: the place to stop a process or to close a connection."""

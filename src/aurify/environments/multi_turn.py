"""A base for environments of several turns: write `step(message)`, return what comes next.

class TwentyQuestions(MultiTurnEnvironment):
    def step(self, message):
        if self.task.answer in message["content"]:
            return Step(done=True, rewards={"found": 1.0})
        return "No. Ask again."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurify.environments.env import Observation
from aurify.threads import settle_call
from aurify.types import Message, Task


class MultiTurnEnvironment:
    """What a subclass may define, each plain or async:

    - `step(message)`: what follows an assistant message. A text is the user's next message, a message or a list of them
      is taken as it is, and a `Step` says more.
    - `begin()`: the first messages; those of the task unless it says otherwise.
    - `finish(outcome)`: called once, however the trajectory ended (see `Outcome` in aurify.types, or "error"); may
      return rewards.
    - `tools`: the schemas that the chat template shows. `stop`: strings that end a turn beside the end token.
    - `counts`: names of metrics that begin at 0, so that a trajectory that never searched counts as one of 0 searches.
      A metric that is not named here is a mean over the trajectories that gave it."""

    tools: Sequence[dict[str, Any]] = ()
    stop: Sequence[str] = ()
    counts: Sequence[str] = ()

    def __init__(self, task: Task, seed: int | None = None) -> None:
        self.task, self.seed = task, seed

    def begin(self) -> Any:
        return list(self.task.prompt)

    def step(self, message: Message) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no step(message)")

    def finish(self, outcome: str) -> Any:
        return None

    async def start(self) -> Observation:
        return Observation(await settle_call(self.begin), self.tools, self.stop, self.counts)

    async def close(self) -> None:
        pass

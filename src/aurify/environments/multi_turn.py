"""A base for environments of several turns: write `step(message)`, return what comes next.

    class TwentyQuestions(MultiTurnEnvironment):
        def step(self, message):
            if self.task.answer in message["content"]:
                return Step(done=True, rewards={"found": 1.0})
            return "No. Ask again."
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from aurify.environments.env import Observation, Step
from aurify.errors import UserError
from aurify.types import Message, Task

Reply = Step | str | Message | Sequence[Message] | None


class MultiTurnEnvironment:
    """What a subclass may define, each plain or async:

    - `step(message)`: what follows an assistant message, whose `tool_calls` are read from its text. A text is the
      user's next message; messages are appended as they are; None ends the conversation; a `Step` says more.
    - `begin()`: the first messages; those of the task unless it says otherwise.
    - `finish(outcome)`: called once, however the trajectory ended (see `Outcome` in aurify.types); may return rewards.
    - `tools`: the schemas that the chat template shows. `stop`: strings that end a turn beside the end token."""

    tools: Sequence[dict[str, Any]] = ()
    stop: Sequence[str] = ()

    def __init__(self, task: Task, seed: int | None = None) -> None:
        self.task, self.seed = task, seed

    def begin(self) -> Any:
        return list(self.task.prompt)

    def step(self, message: Message) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no step(message)")

    def finish(self, outcome: str) -> Any:
        return None

    async def start(self) -> Observation:
        messages = await settle(self.begin())
        if isinstance(messages, Observation):
            return messages
        return Observation(read_messages(messages, f"{type(self).__name__}.begin()"), self.tools)

    async def close(self) -> None:
        pass


async def settle(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def read_step(value: Reply, where: str) -> Step:
    if isinstance(value, Step):
        return value
    return Step(done=True) if value is None else Step(read_messages(value, where))


def read_messages(value: Any, where: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        return [value]  # type: ignore[list-item]
    if isinstance(value, Sequence):
        return list(value)
    raise UserError(f"{where} gave a {type(value).__name__}; expected a text, a message, a list of messages, or a Step")

"""What a model acts in. An environment is made for one trajectory, speaks messages only, and never sees a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aurify.types import Message, Metrics


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model sees first."""

    messages: list[Message]
    tools: Sequence[dict[str, Any]] = ()  # JSON schemas in the OpenAI form; the chat template renders them


@dataclass(frozen=True, slots=True)
class Step:
    """What the environment answers to one assistant message."""

    messages: list[Message] = field(default_factory=list)  # replies: role "tool" or "user"
    done: bool = False
    rewards: dict[str, float] = field(default_factory=dict)  # added to those of the task's rubric
    metrics: Metrics = field(default_factory=dict)


class Environment(Protocol):
    async def start(self) -> Observation: ...

    async def step(self, message: Message) -> Step: ...

    async def close(self) -> None: ...

"""What a row becomes, whatever form it was in: a chat, a preference pair, an answer with a label, or plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from aurify.types import Message


@dataclass(frozen=True, kw_only=True)
class FromRow:
    location: str = ""  # of the row
    part: int = 0  # the number of its source in a mixture
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Chat(FromRow):
    messages: list[Message]
    num_asked: int | None = None  # messages before what is learnt; None: those before the first answer

    @property
    def prompt(self) -> list[Message]:
        """What is asked."""
        if self.num_asked is not None:
            return self.messages[: self.num_asked]
        return list(takewhile(lambda message: message["role"] != "assistant", self.messages))


@dataclass(frozen=True)
class Pair(FromRow):
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0


@dataclass(frozen=True)
class Label(FromRow):
    prompt: list[Message]
    completion: list[Message]
    desirable: bool


@dataclass(frozen=True)
class Text(FromRow):
    text: str


Example = Chat | Pair | Label | Text


def as_untrained_messages(messages: Sequence[Message]) -> list[Message]:
    """The same messages, none of them trained."""
    return [{**message, "weight": 0.0} if message["role"] == "assistant" else message for message in messages]


def map_example_messages(example: Chat | Pair | Label, change: Callable[[list[Message]], list[Message]]) -> Example:
    """The example with `change` applied to its prompt and each of its answers, or to its whole chat."""
    if isinstance(example, Chat):
        return replace(example, messages=change(example.messages))
    prompt = change(example.prompt)
    if isinstance(example, Label):
        return replace(example, prompt=prompt, completion=change(example.completion))
    return replace(example, prompt=prompt, chosen=change(example.chosen), rejected=change(example.rejected))


def list_example_messages(example: Example) -> list[Message]:
    if isinstance(example, Text):
        return []
    if isinstance(example, Chat):
        return example.messages
    answers = example.completion if isinstance(example, Label) else [*example.chosen, *example.rejected]
    return [*example.prompt, *answers]

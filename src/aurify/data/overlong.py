"""The shorter forms of an example with too many tokens: cut where a message ends, from the left (the oldest turns) or
from the right. System prompts stay, and an answer is never cut in itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from aurify.data.example import Chat, Example, Label, Pair
from aurify.types import Datum, Message

Overlong = Literal["error", "drop", "cut_left", "cut_right"]


def cut_text(datum: Datum, limit: int, how: Overlong) -> Datum:
    """Plain text has no messages to cut at."""
    part = slice(-limit, None) if how == "cut_left" else slice(limit)
    return replace(datum, tokens=datum.tokens[part], weights=[0.0, *datum.weights[part][1:]])


def shorten(example: Example, how: Overlong) -> list[Example]:
    """The shorter forms of an example, the longest first. Pairs and labels can only lose the beginning of a prompt."""
    if isinstance(example, Chat):
        kinds = drop_oldest(example.messages) if how == "cut_left" else drop_newest(example.messages)
        return [replace(example, messages=messages) for messages in kinds]
    if isinstance(example, (Pair, Label)) and how == "cut_left":
        return [replace(example, prompt=messages) for messages in drop_oldest(example.prompt)]
    return []


def drop_oldest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left begins with a user's message, after the system prompt."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [k for k in range(len(system) + 1, len(messages)) if messages[k]["role"] == "user"]
    return [[*system, *messages[start:]] for start in starts]


def drop_newest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left ends with an assistant's message that calls no tool: whoever calls one must see what it gave."""
    ends = [k for k in range(len(messages) - 2, 0, -1) if messages[k]["role"] == "assistant"]
    return [list(messages[: end + 1]) for end in ends if not messages[end].get("tool_calls")]

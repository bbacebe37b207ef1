"""Rows above the limit of tokens: cut where a message ends, from the left (the oldest turns) or from the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from aurify.data.pairs import Pair
from aurify.data.shapes import Chat, Example, Label
from aurify.types import Datum, Message

Overlong = Literal["error", "drop", "cut_left", "cut_right"]
Encode = Callable[[Example], tuple[Datum, ...]]


def shortened(example: Example, encode: Encode, limit: int, how: Overlong) -> tuple[Datum, ...] | None:
    """The longest shorter form of the example that fits; None where there is none."""
    forms = shorter(example, how)
    low, high = 0, len(forms)  # forms get shorter: the first that fits
    while low < high:
        middle = (low + high) // 2
        if longest(encode(forms[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    return encode(forms[low]) if low < len(forms) else None


def longest(unit: Sequence[Datum]) -> int:
    return max(len(datum.tokens) for datum in unit)


def shorter(example: Example, how: Overlong) -> list[Example]:
    """The shorter forms of an example, the longest first. System prompts stay; an answer is never cut in itself."""
    if how in ("error", "drop"):
        return []
    if isinstance(example, Chat):
        kinds = without_oldest(example.messages) if how == "cut_left" else without_newest(example.messages)
        return [replace(example, messages=messages) for messages in kinds]
    if isinstance(example, (Pair, Label)) and how == "cut_left":
        return [replace(example, prompt=messages) for messages in without_oldest(example.prompt)]
    return []


def without_oldest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left begins with a user's message, after the system prompt."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [k for k in range(len(system) + 1, len(messages)) if messages[k]["role"] == "user"]
    return [[*system, *messages[start:]] for start in starts]


def without_newest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left ends with an assistant's message that calls no tool: whoever calls one must see what it gave."""
    ends = [
        k
        for k in range(len(messages) - 2, 0, -1)
        if messages[k]["role"] == "assistant" and not messages[k].get("tool_calls")
    ]
    return [list(messages[: end + 1]) for end in ends]

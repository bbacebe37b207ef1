"""Preference pairs: a prompt that both answers share, found where a file does not name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from aurify.data.messages import messages_of, tools_of
from aurify.data.sources import Row
from aurify.data.transcripts import hh_messages
from aurify.types import Message


@dataclass(frozen=True)
class Pair:
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    tools: list[dict[str, Any]] = field(default_factory=list)


def made(
    row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message], tools: list[dict[str, Any]]
) -> Pair:
    if chosen == rejected:
        raise row.bad("chosen and rejected are the same text; nothing can be learned from it")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if any(not m["content"].strip() and not m.get("tool_calls") for m in messages if m["role"] == "assistant"):
            raise row.bad(f"{name!r} holds an empty answer")
    return Pair(prompt, chosen, rejected, number(row, "margin"), tools)


def number(row: Row, column: str) -> float:
    value = row.get(column)
    if value is None or value == "":
        return 0.0
    try:
        if isinstance(value, bool) or abs(result := float(value)) in (float("inf"), float("nan")) or result != result:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise row.bad(
            f"column {column!r} is {str(value)[:40]!r}; expected a number", f"column {column!r} is no number"
        ) from None
    return result


def prompted_pair(
    row: Row,
    prompt: list[Message],
    completion_of: Callable[[Row, str], list[Message]],
    tools: list[dict[str, Any]],
) -> Pair:
    return made(row, prompt, completion_of(row, "chosen"), completion_of(row, "rejected"), tools)


def message_pair(row: Row, prompt_column: str | None) -> Pair:
    """Two whole conversations. A prompt beside them must be part of what they share."""
    pair = shared(row, messages_of(row, "chosen"), messages_of(row, "rejected"), tools_of(row))
    if prompt_column is not None and isinstance(row.get(prompt_column), str):
        asked = row[prompt_column].strip()
        if not any(asked == message["content"].strip() for message in pair.prompt):
            raise row.bad(
                f"{prompt_column!r} is {asked[:40]!r}, which is not in what chosen and rejected share",
                f"{prompt_column!r} is not in what chosen and rejected share",
            )
    return pair


def hh_pair(row: Row) -> Pair:
    return shared(row, hh_messages(row, "chosen"), hh_messages(row, "rejected"), [])


def shared(row: Row, chosen: list[Message], rejected: list[Message], tools: list[dict[str, Any]]) -> Pair:
    """The prompt is what both conversations begin with, up to where the assistant answers differently."""
    if chosen == rejected:
        raise row.bad("chosen and rejected are the same text; nothing can be learned from it")
    end = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    while end > 0 and not all(end < len(side) and side[end]["role"] == "assistant" for side in (chosen, rejected)):
        end -= 1
    if end == 0:
        raise row.bad("chosen and rejected share no prompt")
    return made(row, chosen[:end], chosen[end:], rejected[end:], tools)


def implicit_pair(row: Row) -> Pair:
    """Two texts: the words that both begin with are the prompt."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if chosen == rejected:
        raise row.bad("chosen and rejected are the same text; nothing can be learned from it")
    end = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    while end > 0 and not chosen[end - 1].isspace():  # no word is cut in two
        end -= 1
    prompt, sides = chosen[:end].strip(), [chosen[end:].strip(), rejected[end:].strip()]
    if not prompt:
        raise row.bad("chosen and rejected share no prompt")
    best, worst = ([Message(role="assistant", content=text)] for text in sides)
    return made(row, [{"role": "user", "content": prompt}], best, worst, [])

"""Rows into data: chats for supervised fine-tuning, preferences for reward models and DPO.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"prompt": text or messages, "chosen": text, "rejected": text, "margin": number (optional)}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from aurify.data.sources import Row
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.types import Datum, Message

ROLES = ("system", "user", "assistant", "tool")


def placed(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows that were made in memory get their number as their place."""
    return (row if isinstance(row, Row) else Row(row, f"row {number}") for number, row in enumerate(rows, 1))


def messages_of(row: Row, column: str) -> list[Message]:
    messages = row.need(column)
    if not isinstance(messages, list):
        raise UserError(f"{row.place}: {column!r} holds {type(messages).__name__}; expected a list of messages")
    for k, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise UserError(
                f"{row.place}: {column}[{k}] is {str(message)[:80]}; expected an object with a role ({', '.join(ROLES)}) and a "
                "content that is text"
            )
    return cast(list[Message], messages)


def sft_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer, train: Literal["assistant", "last"] = "assistant") -> list[Datum]:
    data = []
    for row in placed(rows):
        try:
            data.append(Datum(*renderer.conversation(messages_of(row, "messages"), train=train)))
        except UserError as error:
            raise UserError(str(error) if str(error).startswith(row.place) else f"{row.place}: {error}") from error
    return data


def preference_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Chosen and rejected of a pair stand next to each other and are one unit; both begin with the same prompt tokens."""
    data = []
    for unit, row in enumerate(placed(rows)):
        given = row.need("prompt")
        prompt: list[Message] = (
            messages_of(row, "prompt") if isinstance(given, list) else [{"role": "user", "content": row.text("prompt")}]
        )
        chosen, rejected = row.text("chosen"), row.text("rejected")
        if chosen == rejected:
            raise UserError(f"{row.place}: chosen and rejected are the same text; nothing can be learned from it")
        margin = number(row, "margin")
        for text in (chosen, rejected):
            messages: list[Message] = [*prompt, {"role": "assistant", "content": text}]
            tokens, weights = renderer.conversation(messages, train="last")
            data.append(Datum(tokens, weights, unit=unit, margin=margin))
    return data


def number(row: Row, column: str) -> float:
    value: Any = row.get(column, 0.0)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{row.place}: column {column!r} is {value!r}; expected a number")
    return float(value)

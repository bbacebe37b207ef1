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
        known = isinstance(message, dict) and message.get("role") in ROLES
        if not known or not isinstance(message.get("content"), str):
            raise UserError(
                f"{row.place}: {column}[{k}] is {str(message)[:80]}; expected an object with a role "
                f"({', '.join(ROLES)}) and a content that is text"
            )
    return cast(list[Message], messages)


def rendered(
    row: Row, messages: Sequence[Message], renderer: Renderer, train: Literal["assistant", "last"]
) -> tuple[list[int], list[float]]:
    try:
        return renderer.conversation(messages, train=train)
    except UserError as error:
        raise UserError(f"{row.place}: {error}") from error


def sft_data(
    rows: Sequence[Mapping[str, Any]], renderer: Renderer, train: Literal["assistant", "last"] = "assistant"
) -> list[Datum]:
    return [Datum(*rendered(row, messages_of(row, "messages"), renderer, train)) for row in placed(rows)]


def preference_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Chosen and rejected of a pair stand next to each other and are one unit; both begin with the same tokens."""
    data = []
    for unit, row in enumerate(placed(rows)):
        if isinstance(row.get("prompt"), list):
            prompt = messages_of(row, "prompt")
        else:
            prompt = [{"role": "user", "content": row.text("prompt")}]
        chosen, rejected, margin = row.text("chosen"), row.text("rejected"), number(row, "margin")
        if chosen == rejected:
            raise UserError(f"{row.place}: chosen and rejected are the same text; nothing can be learned from it")
        for text in (chosen, rejected):
            tokens, weights = rendered(row, [*prompt, {"role": "assistant", "content": text}], renderer, "last")
            data.append(Datum(tokens, weights, unit=unit, margin=margin))
    return data


def number(row: Row, column: str) -> float:
    value = row.get(column)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{row.place}: column {column!r} is {value!r}; expected a number")
    return float(value)

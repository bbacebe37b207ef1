"""What tasks and traces read in a row: the question, the answer to compare with, and further columns for rewards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from aurify.data.messages import read_messages
from aurify.rows.columns import CHAT, GOLD, PROMPT, find_column
from aurify.rows.row import Row
from aurify.types import Message, Task


def question(text: str, system: str | None = None) -> list[Message]:
    """A prompt of one user turn."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]


def read_question(row: Row, column: str | None = None, system: str | None = None) -> list[Message]:
    """The prompt in a column: text, or messages. None: in the first column with a usual name; of a chat, all but its
    last message."""
    column = column or find_column(row, PROMPT, str, list)
    if column is None:
        chat = find_column(row, CHAT, list)
        if chat is None or len(row[chat]) < 2:
            raise row.bad(f"no question; expected one of the columns {', '.join((*PROMPT, *CHAT))}", "no question")
        return read_messages(row, chat)[:-1]
    return read_messages(row, column) if isinstance(row.get(column), list) else question(row.text(column), system)


def read_gold(row: Row) -> str | None:
    """The answer to compare with, in a column with a usual name or where verl keeps it. None: there is none."""
    judged = row.get("reward_model")
    values = [row.get(name) for name in GOLD] + [judged.get("ground_truth") if isinstance(judged, dict) else None]
    return next((str(value) for value in values if is_gold(value)), None)


def is_gold(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool)


def build_task(row: Row, prompt: list[Message], answer: str | None, but: Collection[str] = ()) -> Task:
    """but: columns that rewards do not receive by their names."""
    return Task(row.location, prompt, answer, {name: value for name, value in row.items() if name not in but})


def last_question(messages: Sequence[Message]) -> str:
    """What a prompt asks: its last user turn, white space aside. System prompts differ between a file and a task."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return " ".join((asked[-1] if asked else messages[-1]["content"]).split())

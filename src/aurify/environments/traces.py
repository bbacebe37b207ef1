"""Answers that were written for an environment, before anybody acted in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aurify.environments.hosting import unwrap_partial
from aurify.types import Message


def list_answer_messages(answer: str | list[Message], environment: Callable[..., Any]) -> list[Message]:
    """The messages of an answer. An environment that puts its own words into the policy's turn has `split_trace(text)`,
    which tells them apart."""
    if not isinstance(answer, str):
        return answer
    split = getattr(unwrap_partial(environment), "split_trace", None)
    return [{"role": "assistant", "content": answer}] if split is None else split(answer)

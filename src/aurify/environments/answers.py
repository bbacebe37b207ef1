"""What the steps of an environment give beside messages, summed over a trajectory, and what of it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aurify.environments.env import Step
from aurify.errors import UserError
from aurify.types import Metrics

ROLES = ("system", "user", "assistant", "tool")


class Answers:
    """Rewards and metrics of all steps, added up by name.

    A reward of None does not apply, and adds nothing. One that is no finite number makes the whole reward None: it is
    masked, as with the rewards of a rubric. A metric that is no finite number is left out."""

    def __init__(self) -> None:
        self.rewards: dict[str, float | None] = {}
        self.metrics: Metrics = {}
        self.problems: list[str] = []
        self._masked: set[str] = set()

    def add(self, step: Step) -> None:
        for name, value in self._items("rewards", step.rewards):
            number = finite_number(value)
            if value is None:
                self.rewards.setdefault(name, None)
            elif number is None:
                self.problems.append(
                    f"the environment's reward {name!r} is {show_environment_value(value)}, which is no finite number"
                )
                self._masked.add(name)
            else:
                self.rewards[name] = (self.rewards.get(name) or 0.0) + number
            if name in self._masked:
                self.rewards[name] = None
        for name, value in self._items("metrics", step.metrics):
            number = finite_number(value)
            if number is None:
                self.problems.append(
                    f"the environment's metric {name!r} is {show_environment_value(value)}, which is no finite number"
                )
            else:
                self.metrics[name] = self.metrics.get(name, 0.0) + number

    def _items(self, what: str, values: Any) -> list[tuple[str, Any]]:
        if isinstance(values, Mapping):
            return [(str(name), value) for name, value in values.items()]
        if values is not None:
            self.problems.append(f"the environment's {what} are {show_environment_value(values)}; expected a dict")
        return []


def finite_number(value: Any) -> float | None:
    """The number that it is; None for text, NaN and the like."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_turn_numbers(values: Any) -> dict[str, float | None]:
    """Those of a turn; None for what cannot be used, which `Answers` tells."""
    return {str(name): finite_number(value) for name, value in values.items()} if isinstance(values, Mapping) else {}


def show_environment_value(value: Any) -> str:
    return repr(value)[:60]


def check_environment_messages(messages: Any, where: str) -> None:
    """What an environment says must be messages."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise UserError(
            f"{where} gave messages that are {show_environment_value(messages)}; expected a list of messages"
        )
    for message in messages:
        if (
            not isinstance(message, Mapping)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise UserError(
                f"{where} gave the message {show_environment_value(message)}; expected an object with a role "
                f"({', '.join(ROLES)}) and a content that is text"
            )

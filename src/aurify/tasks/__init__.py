"""Data, environment and reward in one object, by name."""

from __future__ import annotations

import inspect
from typing import Any

from aurify import registry
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.tasks.taskset import TaskSet

__all__ = ["TaskSet", "make"]


def make(name: str, **options: Any) -> TaskSet:
    """The task set of that name, with its options; `gym:<data set>` for those of reasoning-gym."""
    prefix, _, rest = name.partition(":")
    if prefix == "gym" and rest:
        from aurify.tasks.gym import gym

        return gym(rest, **options)
    function = registry.get("task", name)
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                raise UserError(f"task {name!r} has no option {option!r}{did_you_mean(option, parameters)}")
    required = (key for key, parameter in parameters.items() if parameter.default is parameter.empty)
    if missing := [key for key in required if key not in options]:
        raise UserError(f"task {name!r} needs the option {missing[0]!r}")
    try:
        result = function(**options)
    except TypeError as error:
        raise UserError(f"task {name!r}: an option has the wrong type: {error}") from error
    if not isinstance(result, TaskSet):
        raise UserError(f"task {name!r} gave a {type(result).__name__}; it must return a TaskSet")
    return result

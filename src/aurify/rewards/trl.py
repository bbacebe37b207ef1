"""TRL's reward functions, unchanged: what they are called with, and what they may give back (TRL 1.16).

    def reward(prompts, completions, completion_ids, solution, trainer_state, log_metric, **columns) -> list[float]

By the form of the prompt, completions are texts or lists of messages. Every column of the task comes under its own
name, one entry for each completion. Beside the environment `trl` there is `environments`, the instance that each
completion was played in."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aurify.signatures import takes_completions
from aurify.tools.calls import read_tool_calls
from aurify.types import Message, Task, Trajectory


class WrongReturn(ValueError):
    """What a function gave back is no list of rewards."""


OWN = ("prompt", "completion", "completion_ids")  # columns of a data set that TRL does not hand on


class TrainerState:
    """How far training is. Other attributes are those of transformers' TrainerState, at their defaults."""

    def __init__(self, global_step: int = 0, max_steps: int = -1) -> None:
        self.global_step, self.max_steps = global_step, max_steps

    def __getattr__(self, name: str) -> Any:
        from transformers import TrainerState as Full  # three seconds, and hardly ever needed

        return getattr(Full(global_step=self.global_step, max_steps=self.max_steps), name)


def is_trl_reward(function: Callable[..., Any]) -> bool:
    return takes_completions(inspect.signature(function))


def name_reward_function(function: Any) -> str:
    """The name of a function, of what a `partial` wraps, or of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def build_trl_arguments(
    function: Callable[..., Any], task: Task, trajectories: Sequence[Trajectory], state: TrainerState
) -> dict[str, Any]:
    """Those of TRL's keyword arguments that the function takes."""
    num = len(trajectories)
    known: dict[str, Any] = {name: [value] * num for name, value in join_trl_columns(task).items() if name not in OWN}
    played = [trajectory.environment is not None for trajectory in trajectories]
    if task.plain and not any(played):
        known["prompts"] = [task.prompt[-1]["content"]] * num
        known["completions"] = [trajectory.text for trajectory in trajectories]
    else:  # an environment of TRL speaks messages, and adds what it shows first to the prompt
        prompts = [t.messages[: t.num_prompt_messages] if t.environment else task.prompt for t in trajectories]
        known["prompts"] = [list(prompt) for prompt in prompts]
        known["completions"] = [spell_trl_calls(trajectory) for trajectory in trajectories]
    if any(played):
        known["environments"] = [t.environment and t.environment.shown_to_rewards for t in trajectories]
    known["completion_ids"] = [
        [token for segment in trajectory.segments if segment.origin == "policy" for token in segment.tokens]
        for trajectory in trajectories
    ]

    def log_metric(name: str, value: float) -> None:
        for trajectory in trajectories:
            trajectory.metrics[name] = float(value)

    def log_extra(column: str, values: list[Any]) -> None:
        for trajectory, value in zip(trajectories, values, strict=True):
            trajectory.extra[column] = json.loads(json.dumps(value, default=str))

    known |= {"trainer_state": state, "log_metric": log_metric, "log_extra": log_extra}
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return known
    return {parameter.name: known[parameter.name] for parameter in parameters if parameter.name in known}


def spell_trl_calls(trajectory: Trajectory) -> list[Message]:
    """The messages after the prompt, with `tool_calls` where tools are called."""
    said = list(trajectory.completion)
    for index, message in enumerate(said if trajectory.tools else ()):
        if message["role"] == "assistant" and (calls := read_tool_calls(message["content"], trajectory.tools)):
            said[index] = {**message, "tool_calls": calls}
    return said


def join_trl_columns(task: Task) -> dict[str, Any]:
    """The columns of a task, but its prompt; the answer is the solution, too."""
    return {"solution": task.answer, "answer": task.answer, **task.info}


def list_trl_rewards(given: Any, num: int) -> list[Any]:
    """One value for each completion, of a list, an array, a tensor or a generator. Raises for everything else."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        shown = "nothing" if given is None else f"{given!r}"[:80]
        raise WrongReturn(f"it gave {shown}; return a list with one number, or None, for each of the {num} completions")
    values = list(given)
    if len(values) != num:
        raise WrongReturn(f"it gave {len(values)} values for {num} completions; return one for each")
    return values


def explain_reward_error(error: Exception, task: Task) -> str:
    """An error, and what a person may do about it."""
    if isinstance(error, WrongReturn):
        return str(error)
    text = f"it raised {type(error).__name__}: {error}"
    if task.plain and isinstance(error, TypeError) and "string ind" in text:
        return (
            f"{text} (the prompts are texts, so completions are texts, as with TRL; read them as texts, or write the "
            "prompts as lists of messages)"
        )
    if not task.plain and isinstance(error, (AttributeError, TypeError)) and "'list'" in text:
        return (
            f"{text} (the prompts are lists of messages, so completions are such lists, as with TRL; read "
            "completion[0]['content'], or write the prompts as texts)"
        )
    if isinstance(error, (TypeError, KeyError)) and "'environments'" in text:
        return f"{text} (environments are there beside `environment: {{name: trl, factory: ...}}` alone)"
    if isinstance(error, TypeError) and "required" in text and "argument" in text:
        return f"{text} (the columns of the task are {', '.join(sorted({'answer', 'solution', *task.info}))})"
    return text

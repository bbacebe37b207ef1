"""What a model acts in. An environment is made for one trajectory, speaks messages only, and never sees a token.

Its methods run in a thread with an event loop of its own, so they may block; each call has a time limit. An environment
that never blocks, or shares what belongs to one event loop with others, says `threaded = False`, and runs beside them.
If it takes an option `seed`, it gets one that depends on the run's seed, the step, the task and the index in the group:
the same in a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from aurify import registry
from aurify.signatures import convert_call_options, split_options
from aurify.types import Message, Metrics, Task


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model sees first."""

    messages: list[Message]
    tools: Sequence[dict[str, Any]] = ()  # JSON schemas in the OpenAI form; the chat template renders them
    stop: Sequence[str] = ()  # strings that end a turn, beside the end token
    counts: Sequence[str] = ()  # metrics that begin at 0; others have no value where no step gives one


@dataclass(frozen=True, slots=True)
class Step:
    """What the environment answers to one assistant message."""

    messages: list[Message] = field(default_factory=list)  # replies: role "tool" or "user"
    done: bool = False
    rewards: Mapping[str, float | None] = field(default_factory=dict)  # summed over steps, beside those of the rubric
    metrics: Metrics = field(default_factory=dict)  # numbers, summed over steps
    continue_turn: str = ""  # instead of messages: put after what was sampled, and the same turn goes on


class Environment(Protocol):
    async def start(self) -> Observation: ...

    async def step(self, message: Message) -> Step:
        """message: what the policy wrote, with `tool_calls` read from its text where tools are offered. In a turn that
        goes on, what was written since the last step."""
        ...

    async def close(self) -> None: ...


def build_environment(entry: Any) -> Callable[[Task], Environment]:
    """From a recipe: a registered name, or {name: ..., options of it}. The options are checked here, once."""
    name, options = split_options("environment", entry)
    found = registry.get_entry("environment", name)
    return partial(found, **convert_call_options(f"environment {name!r}", found, options, num_given=1))


def unwrap_environment(environment: Any) -> Any:
    """The environment itself, where it is hosted."""
    return getattr(environment, "inner", environment)


def describe_environment(environment: Environment) -> str:
    return f"environment {type(unwrap_environment(environment)).__name__!r}"

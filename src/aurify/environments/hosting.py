"""Where the methods of an environment run: in a thread with an event loop of its own, each call within a time limit.
So an environment that blocks, or never answers, holds up its own trajectory and no other."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aurify.environments.env import Environment, Observation, Step
from aurify.signatures import report_crashes
from aurify.threads import Room, settle_call, wait_with_limit
from aurify.types import Message, Task

CLOSING_SECONDS = 1.0  # for an environment to close after a call that was given up


class Hosted:
    """An environment, as a rollout sees it. Without a room it runs in the caller's event loop."""

    def __init__(self, inner: Environment, room: Room | None, seconds: float | None) -> None:
        self.inner, self.room, self.seconds = inner, room, seconds

    async def start(self) -> Observation:
        return await self._call("start")

    async def step(self, message: Message) -> Step:
        return await self._call("step", message)

    async def finish(self, outcome: str) -> Any:
        return await self._call("finish", outcome) if hasattr(self.inner, "finish") else None

    async def close(self) -> None:
        await self._call("close")

    async def _call(self, name: str, *arguments: Any) -> Any:
        method = partial(settle_call, getattr(self.inner, name))
        late = self.room is not None and self.room.late
        seconds = CLOSING_SECONDS if late else self.seconds
        what = f"environment {type(self.inner).__name__!r}: {name}()"
        if self.room is None:
            return await wait_with_limit(method(*arguments), seconds, what)
        return await self.room.run(partial(method, *arguments), seconds, what)


def is_threaded_environment(factory: Callable[..., Environment]) -> bool:
    """Not those that say `threaded = False`: they never block."""
    return bool(getattr(unwrap_partial(factory), "threaded", True))


@asynccontextmanager
async def host_environment(
    factory: Callable[[Task], Environment],
    task: Task,
    *,
    seed: int | None = None,
    seconds: float | None,
    stuck: list[Room] | None = None,
) -> AsyncIterator[Hosted]:
    """Makes the environment of one trajectory, in a thread of its own if it may block. Each call may take `seconds`. A
    thread that may still be busy when the trajectory ends is added to `stuck`."""
    room, function = Room("aurify-environment") if is_threaded_environment(factory) else None, unwrap_partial(factory)
    try:
        with report_crashes(f"environment {getattr(function, '__name__', '')!r}", function):
            environment = await make_environment(factory, task, seed, room, seconds)
        yield environment
    finally:
        if room is not None:
            room.leave()
            if room.late and stuck is not None:
                stuck.append(room)


async def make_environment(
    factory: Callable[..., Environment], task: Task, seed: int | None, room: Room | None, seconds: float | None
) -> Hosted:
    """seed: given to factories that have a parameter of that name, unless the recipe has set it."""
    options = {"seed": seed} if seed is not None and environment_takes_seed(factory) else {}

    async def make() -> Environment:
        return factory(task, **options)

    what = f"environment {getattr(unwrap_partial(factory), '__name__', 'function')!r}: making it"
    made = await (room.run(make, seconds, what) if room is not None else make())
    return Hosted(made, room, seconds)


def environment_takes_seed(factory: Callable[..., Environment]) -> bool:
    given = factory.keywords if isinstance(factory, partial) else {}
    try:
        return "seed" in inspect.signature(factory).parameters and "seed" not in given
    except (TypeError, ValueError):
        return False


def unwrap_partial(factory: Any) -> Any:
    return factory.func if isinstance(factory, partial) else factory

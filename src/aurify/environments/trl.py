"""Classes that people write for TRL's `environment_factory`, unchanged (TRL 1.16).

    class Counter:
        def reset(self, target, **columns) -> str | None: ...  # all columns of the task; a text goes into the prompt
        def add(self, number: int) -> str: ...                 # public methods are tools
        def get_reward(self) -> float: ...                     # optional; called when the trajectory has ended

As there, an instance is made once and reset often: it plays one trajectory after the other, and is lent to the next one
when rewards have judged the last. All its methods run in one thread, its own."""

from __future__ import annotations

import inspect
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aurify import registry
from aurify.environments.env import Step
from aurify.environments.episode import extend_episode_prompt
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.rewards.environment import REWARD
from aurify.rewards.trl import join_trl_columns
from aurify.threads import Room, TimeLimit, settle_call
from aurify.tools.tool import Tool, make_tool
from aurify.tools.toolbox import CALL_SECONDS, Toolbox
from aurify.types import Message, Metrics, Task

OWN = ("reset", "get_reward")  # public methods that are no tools
WHAT = "environment 'trl'"


@dataclass
class Seat:
    """An instance, its tools, and the thread in which they run."""

    instance: Any
    tools: list[Tool]
    room: Room

    async def call(self, method: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        name = getattr(method, "__name__", "call")
        return await self.room.run(partial(settle_call, partial(method, *arguments, **keywords)), None, name)


IDLE: dict[Any, list[Seat]] = defaultdict(list)  # by factory


class TRL(ToolUse):
    """A class for TRL's environment_factory, unchanged: reset() gets the columns of the task, public methods are tools,
    get_reward() gives the reward `environment`, and TRL's reward functions get `environments`. factory: file.py:Class;
    or several by name, of which the column `environment` chooses. seconds: for each call; a call that takes longer ends
    the trajectory."""

    threaded = False  # each instance has a thread

    def __init__(self, task: Task, factory: Any, seconds: float = CALL_SECONDS, max_calls: int = 8) -> None:
        super().__init__(task, list, seconds, max_calls)
        given = {
            name: value for name, value in join_trl_columns(task).items() if value is not None or name in task.info
        }
        self.columns = {"prompt": list(task.prompt), **given}
        self.factory = choose_environment_factory(factory, self.columns, task)
        self.seat: Seat | None = None

    async def begin(self) -> list[Message]:
        idle = IDLE[self.factory]
        self.seat = seat = idle.pop() if idle else await open_environment_seat(self.factory)
        weakref.finalize(self, return_environment, seat, idle).atexit = False
        self.toolbox = Toolbox(seat.tools, self.toolbox.seconds)
        self.tools, self.shown_to_rewards = self.toolbox.schemas, seat.instance
        shown = await seat.call(seat.instance.reset, **fit_reset_columns(seat.instance, self.columns, self.task))
        shown = "" if shown is None else read_observation_blocks(shown)
        if not isinstance(shown, str):
            raise UserError(f"{WHAT}: {type(seat.instance).__name__}.reset() gave {shown!r}; expected a text or None")
        return extend_episode_prompt(self.task.prompt, shown, "")

    async def step(self, message: Message) -> Step:
        step = await super().step(message)
        if self.seat is not None and self.seat.room.late:
            raise TimeLimit(
                f"{WHAT}: a call took longer than {self.toolbox.seconds:g} seconds, and may still be running"
            )
        return step

    async def finish(self, outcome: str) -> Metrics | None:
        seat = self.seat
        if seat is None or outcome == "error" or seat.room.late or not hasattr(type(seat.instance), "get_reward"):
            return None
        return {REWARD: await seat.call(seat.instance.get_reward)}


def choose_environment_factory(given: Any, columns: dict[str, Any], task: Task) -> Callable[[], Any]:
    """A column that chooses is taken out of the columns, as with TRL."""
    if isinstance(given, Mapping):
        name = columns.pop("environment", None)
        if name not in given:
            raise UserError(f"{WHAT}: task {task.id!r} has the column environment: {name!r}; known: {', '.join(given)}")
        given = given[name]
    found = registry.load_object(WHAT, given) if isinstance(given, str) else given
    if not callable(found):
        raise UserError(f"{WHAT}: factory is {found!r}; expected file.py:Class, or several: {{name: file.py:Class}}")
    return found


async def open_environment_seat(factory: Callable[[], Any]) -> Seat:
    seat = Seat(None, [], Room("aurify-trl"))
    try:
        seat.instance = await seat.call(factory)
        methods = dict(inspect.getmembers(type(seat.instance), inspect.isfunction))  # properties are not evaluated
        if "reset" not in methods:
            raise UserError(f"{WHAT}: {type(seat.instance).__name__} has no method reset()")
        names = [name for name in methods if name not in OWN and not name.startswith("_")]
        seat.tools = [lend_environment_tool(seat, make_tool(getattr(seat.instance, name))) for name in names]
    except BaseException:
        seat.room.leave()
        raise
    return seat


def lend_environment_tool(seat: Seat, tool: Tool) -> Tool:
    async def call(arguments: Mapping[str, Any]) -> Any:
        return read_observation_blocks(await seat.call(tool.function, arguments))

    return replace(tool, function=call, blocking=False)


def return_environment(seat: Seat, idle: list[Seat]) -> None:
    if seat.room.late:
        seat.room.leave()
    else:
        idle.append(seat)


def fit_reset_columns(instance: Any, columns: dict[str, Any], task: Task) -> dict[str, Any]:
    """Those that reset() takes."""
    signature = inspect.signature(instance.reset)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        columns = {name: value for name, value in columns.items() if name in signature.parameters}
    try:
        signature.bind(**columns)
    except TypeError as error:
        known = f"the columns of task {task.id!r} are {', '.join(['prompt', *task.info])}"
        raise UserError(f"{WHAT}: {type(instance).__name__}.reset(): {error}; {known}") from error
    return columns


def read_observation_blocks(value: Any) -> Any:
    """Blocks of text as one text; other values as they are."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) and "type" in part for part in value):
        return value
    if other := [part["type"] for part in value if part["type"] != "text"]:
        raise UserError(f"{WHAT}: it shows a block of type {other[0]!r}; texts alone can be shown")
    return "".join(part["text"] for part in value) if value else value

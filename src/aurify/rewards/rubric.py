"""Scores trajectories by a weighted list of reward functions, and keeps the breakdown.

A reward function is any callable, plain or async. Ours: `(task, trajectory) -> float | None`. TRL's works unchanged,
see `trl.py`. None means "does not apply" and is masked, not zero. So is a reward that raises or is not a finite number,
since it says nothing about the answer; it is counted, and a reward that does nothing but fail is an error.

Async rewards of a group run at the same time. A plain function runs in a thread of its own, one call after the other,
so it may block. An attribute says otherwise: with `function.threaded = True` several calls may run side by side, with
False they run in the event loop, in the thread that everything started in. A call that takes longer than its limit
counts as one that raised; Aurify's own rewards have limits of their own."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from aurify import registry
from aurify.errors import UserError
from aurify.rewards.trl import (
    TrainerState,
    WrongReturn,
    build_trl_arguments,
    explain_reward_error,
    is_trl_reward,
    list_trl_rewards,
    name_reward_function,
)
from aurify.signatures import call_with_options, takes_completions
from aurify.threads import PerLoop, TimeLimit, Worker, call_in_thread, wait_with_limit
from aurify.types import Task, Trajectory

RewardFunction = Callable[..., Any]
SECONDS = 120.0  # for a call
SIDE_BY_SIDE = min(32, (os.cpu_count() or 1) + 4)  # calls of a reward that says `threaded = True`
MAX_FAILURES_IN_A_ROW = 64  # completions; a reward that has worked may fail for a few bad tasks, but not for so many


class Caller:
    """Calls one function of a person, in the thread that suits it."""

    def __init__(self, function: RewardFunction) -> None:
        self.function, owner = function, getattr(function, "__self__", function)
        self.threaded = getattr(owner, "threaded", None)
        self.is_ours = str(getattr(owner, "__module__", "")).startswith("aurify.")
        self.is_async = any(map(inspect.iscoroutinefunction, (function, getattr(type(function), "__call__", None))))  # noqa: B004
        self.worker, self.turn, self.side_by_side = Worker("aurify-reward"), PerLoop(1), PerLoop(SIDE_BY_SIDE)
        self.needs_main_thread = False  # found out: it uses signals

    async def catch(self, seconds: float | None, /, *arguments: Any, **keywords: Any) -> Any:
        """What the function returns, or the exception that it raised."""
        seconds = None if self.is_ours else seconds

        def call() -> Any:
            value = self.function(*arguments, **keywords)
            return list(value) if inspect.isgenerator(value) else value

        try:
            value = await self._call(seconds, call)
            return await wait_with_limit(value, seconds, "the reward") if inspect.isawaitable(value) else value
        except UserError as error:
            if isinstance(error, TimeLimit):
                return error
            raise  # not this answer but the set-up is wrong: an extra is missing, or a sandbox
        except Exception as error:
            return error

    async def _call(self, seconds: float | None, call: Callable[[], Any]) -> Any:
        if self.threaded:
            async with self.side_by_side.get():
                return await call_in_thread(call, seconds, "the reward")
        if self.threaded is False or self.needs_main_thread or self.is_async:
            return call()
        async with self.turn.get():
            try:
                return await self.worker.run(call, seconds, "the reward")
            except ValueError as error:
                if "main thread" not in str(error):
                    raise
        self.needs_main_thread = True  # such as math_verify, whose time limits are signals
        return call()


@dataclass(frozen=True)
class Reward:
    function: RewardFunction
    weight: float = 1.0
    name: str = ""
    caller: Caller = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", name_reward_function(self.function))
        # ours may have a method `batch`, to judge a whole group in one call
        object.__setattr__(self, "caller", Caller(getattr(self.function, "batch", self.function)))

    async def __call__(
        self,
        task: Task,
        trajectories: Sequence[Trajectory],
        seconds: float | None = SECONDS,
        state: TrainerState | None = None,
    ) -> list[Any]:
        """A value, or the exception that came instead, for each trajectory. seconds: the limit of a call."""
        catch = partial(self.caller.catch, seconds)
        if hasattr(self.function, "batch"):
            values = await catch(task, trajectories)
        elif is_trl_reward(self.function):
            arguments = build_trl_arguments(self.function, task, trajectories, state or TrainerState())
            values = await catch(**arguments)
        else:
            return await asyncio.gather(*(catch(task, trajectory) for trajectory in trajectories))
        if not isinstance(values, Exception):
            try:
                return list_trl_rewards(values, len(trajectories))
            except WrongReturn as error:
                values = error
        return [values] * len(trajectories)


class Rubric:
    """rewards: functions, or (function, weight) or (function, weight, name), or `Reward`s. The first one judges the
    answer: held-out numbers are its mean. seconds: the limit of a call."""

    def __init__(self, rewards: Sequence[Any], seconds: float | None = SECONDS) -> None:
        self.seconds = seconds
        self.rewards = [
            reward if isinstance(reward, Reward) else Reward(*reward) if isinstance(reward, tuple) else Reward(reward)
            for reward in rewards
        ]
        names = Counter(reward.name for reward in self.rewards)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise UserError(f"rewards: the name {repeated[0]!r} is used twice; give each reward its own")
        self.state = TrainerState()
        self.failures: dict[str, str] = {}  # reward -> the first thing that went wrong
        self.num_failures: Counter[str] = Counter()
        self._worked: set[str] = set()
        self._failed_in_a_row: Counter[str] = Counter()

    async def score(self, task: Task, trajectories: Sequence[Trajectory]) -> None:
        """Fills `rewards` (the breakdown) and `reward` (the weighted sum of those that apply) of every trajectory.

        What the environment gave on the way counts with weight 1."""
        if not trajectories:
            return
        own = {reward.name for reward in self.rewards}
        for trajectory in trajectories:
            given = [value for name, value in trajectory.rewards.items() if name not in own and value is not None]
            trajectory.reward = math.fsum(given) if given else None
        every = await asyncio.gather(*(reward(task, trajectories, self.seconds, self.state) for reward in self.rewards))
        for reward, values in zip(self.rewards, every, strict=True):
            problems = [describe_reward_failure(value, task) for value in values]
            for trajectory, value, problem in zip(trajectories, values, problems, strict=True):
                valid = None if problem or value is None else float(value)
                trajectory.rewards[reward.name] = valid
                if valid is not None:
                    trajectory.reward = (trajectory.reward or 0.0) + reward.weight * valid
            self._count(reward.name, task, [problem for problem in problems if problem], len(values))
        for trajectory in trajectories:
            trajectory.environment = None  # its instance plays the next task

    def check_tasks(self, tasks: Iterable[Task]) -> None:
        """Refuses tasks that a reward could never judge. A reward that can tell has `check_task(task)`, which raises a
        ValueError; plain functions of Aurify raise one themselves."""
        checks = [(reward.name, find_reward_check(reward)) for reward in self.rewards]
        problems: list[str] = []
        if any(check for _, check in checks):
            for task in tasks:
                for name, check in checks:
                    try:
                        if check is not None:
                            check(task)
                    except ValueError as error:
                        problems.append(f"task {task.id!r}: reward {name!r}: {error}")
        if problems:
            more = f" ({len(problems) - 1} more tasks cannot be judged either)" if problems[1:] else ""
            raise UserError(problems[0] + more)

    def succeeded(self, trajectory: Trajectory, threshold: float = 1.0) -> bool:
        """Whether the first reward, which judges the answer, gave a scored trajectory at least `threshold`."""
        value = trajectory.rewards.get(self.rewards[0].name)
        return value is not None and value >= threshold

    def _count(self, name: str, task: Task, problems: Sequence[str], num_values: int) -> None:
        if problems:
            self.failures.setdefault(name, problems[0])
            self.num_failures[name] += len(problems)
        if len(problems) < num_values:
            self._worked.add(name)
            self._failed_in_a_row[name] = 0
            return
        self._failed_in_a_row[name] += num_values
        if name not in self._worked or self._failed_in_a_row[name] >= MAX_FAILURES_IN_A_ROW:
            num = self._failed_in_a_row[name]
            told = "its first completion" if num == 1 else f"all of the last {num} completions"
            raise UserError(
                f"reward {name!r} failed for {told}; for task {task.id!r} {problems[0]}. "
                "Mend the reward, or let it return None where it does not apply"
            )


def find_reward_check(reward: Reward) -> Callable[[Task], Any] | None:
    """What raises a ValueError for a task that a reward could never judge."""
    function = reward.function
    if hasattr(function, "check_task"):
        check: Callable[[Task], Any] = function.check_task
        return check
    plain = inspect.isfunction(function) and not reward.caller.is_async and not is_trl_reward(function)
    return (lambda task: function(task, Trajectory([], [], 0))) if plain and reward.caller.is_ours else None


def mean_rewards(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of each reward the mean over those to which it applies; rewards that apply to none are left out."""
    means = {}
    for name in sorted({name for trajectory in trajectories for name in trajectory.rewards}):
        values = [value for t in trajectories if (value := t.rewards.get(name)) is not None]
        if values:
            means[name] = fmean(values)
    return means


def describe_reward_failure(value: Any, task: Task) -> str | None:
    """What is wrong with a reward; None if it is a finite number, or None."""
    if isinstance(value, Exception):
        return explain_reward_error(value, task)
    if value is None:
        return None
    if isinstance(value, str):
        return f"it returned {value!r}, which is not a finite number but a text; return float({value!r})"
    if isinstance(value, list):
        return f"it returned {value!r}, which is not a finite number but a list; return one number for each completion"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    return None if math.isfinite(number) else f"it returned {value!r}, which is not a finite number"


def build_rubric(entries: Any) -> Rubric:
    """From a recipe: a name, or a list of names, of [name, weight], or of {name: ..., weight: ..., options of it}."""
    return Rubric([build_reward(entry) for entry in (entries if isinstance(entries, list) else [entries])])


def build_reward(entry: Any) -> Reward:
    """A name is that of a registered reward, or `file.py:function`, or `module:function`."""
    if isinstance(entry, str):
        entry = {"name": entry}
    elif isinstance(entry, list) and len(entry) == 2:
        entry = {"name": entry[0], "weight": entry[1]}
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise UserError(f"reward {entry!r}: expected a name, [name, weight] or {{name: ..., weight: ...}}")
    options = {key: value for key, value in entry.items() if key not in ("name", "weight")}
    weight, found = entry.get("weight", 1.0), registry.get_entry("reward", entry["name"])
    name = str(entry["name"]).rpartition(":")[2]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"reward {name!r}: its weight is {weight!r}; expected a number")
    signature = inspect.signature(found)
    if "trajectory" in signature.parameters or takes_completions(signature):
        if options:
            raise UserError(f"reward {name!r} takes no options; {next(iter(options))!r} is given")
        return Reward(found, float(weight), name)
    made = call_with_options(f"reward {name!r}", found, options)
    if not callable(made):
        raise UserError(
            f"reward {name!r} takes no trajectory, so it was called with its options, and gave {made!r}; it must "
            "return a reward: a function (task, trajectory) -> number"
        )
    return Reward(made, float(weight), name)

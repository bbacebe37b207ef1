"""Several tasks in one stage, in fixed ratios, each with its own environment, tools and rewards.

A recipe writes `task: [{name: sorting, ratio: 2}, {name: multiplication, tools: [calculator]}]`. In any stretch of the
training tasks each has its share to within one, so a step of a few prompts keeps the ratios too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from aurify.environments.env import Environment
from aurify.environments.hosting import environment_takes_seed, is_threaded_environment
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.rewards.rubric import SECONDS, Reward, Rubric, find_reward_check
from aurify.rewards.trl import TrainerState
from aurify.tasks import make
from aurify.tasks.taskset import TaskSet
from aurify.types import Message, Task, Trajectory

ANSWER = "answer"  # what judges the answer, where the tasks call it differently


@dataclass(frozen=True)
class Part:
    label: str  # names it in ids and metrics
    taskset: TaskSet
    ratio: float


def mix(tasks: Sequence[Mapping[str, Any]]) -> TaskSet:
    """Draws from several tasks by their ratios. tasks: each {name: ..., ratio: 1, label: its name, and the options of
    that task}."""
    parts = [build_mix_part(entry, number) for number, entry in enumerate(tasks)]
    labels = [part.label for part in parts]
    if len(parts) < 2:
        raise UserError(f"task: a list of {len(parts)}; write two or more tasks, or one without the list")
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"task: two tasks are called {repeated[0]!r}; give each of them a `label` of its own")
    known = {part.label: part.taskset for part in parts}
    schemas = [list(part.taskset.tools) for part in parts]
    alike = all(tools == schemas[0] for tools in schemas)

    def demonstrate(task: Task) -> str | list[Message] | None:
        if not alike:
            raise UserError(
                "task: tasks with different tools cannot be demonstrated in one stage; take a stage for each"
            )
        return known[task.part].demonstration(task)

    return TaskSet(
        " + ".join(labels),
        lambda seed: interleave_tasks(parts, [repeat_tasks(part, seed) for part in parts]),
        list(interleave_tasks(parts, [map(mark_task_source(part), part.taskset.heldout) for part in parts])),
        Rubric(mix_rewards(parts)),
        mix_environments(known),
        demonstrate,
        schemas[0] if alike else [tool for tools in schemas for tool in tools],
        notes=[f"{part.label}: {note}" for part in parts for note in part.taskset.notes],
    )


def build_mix_part(entry: Any, number: int) -> Part:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise UserError(f"task[{number}]: {entry!r}; write for example {{name: sorting, ratio: 2}}")
    options = dict(entry)
    name, ratio = options.pop("name"), options.pop("ratio", 1)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 0:
        raise UserError(f"task[{number}].ratio: {ratio!r}; expected a number above 0")
    label = str(options.pop("label", name))
    return Part(label, make(name, **options), float(ratio))


# ---------------------------------------------------------------------- tasks


def mark_task_source(part: Part) -> Callable[[Task], Task]:
    """Ids stay unique, whatever sets are mixed: they are the keys of groups."""
    return lambda task: replace(task, id=f"{part.label}/{task.id}", part=part.label)


def repeat_tasks(part: Part, seed: int) -> Iterator[Task]:
    for epoch in count():
        number = random.Random(f"{seed}/{part.label}/{epoch}").getrandbits(62)
        empty = True
        for task in part.taskset.train(number if epoch else seed):
            empty = False
            yield mark_task_source(part)(task)
        if empty:
            raise UserError(f"task {part.label!r}: there is no training task; look at its options")


def interleave_tasks(parts: Sequence[Part], streams: Sequence[Iterator[Task]]) -> Iterator[Task]:
    """The next task is that of the part which is furthest behind its ratio. A stream that ends drops out."""
    taken, left = [0] * len(parts), set(range(len(parts)))
    while left:
        index = min(left, key=lambda k: ((taken[k] + 0.5) / parts[k].ratio, k))
        try:
            task = next(streams[index])
        except StopIteration:
            left.discard(index)
            continue
        taken[index] += 1
        yield task


# ---------------------------------------------------------------------- environments and rewards


def mix_environments(known: Mapping[str, TaskSet]) -> Callable[..., Environment]:
    factories = {label: taskset.environment for label, taskset in known.items()}
    if all(factory is SingleTurn for factory in factories.values()):
        return SingleTurn

    def open_environment(task: Task, seed: int | None = None) -> Environment:
        factory = factories[task.part]
        return factory(task, seed=seed) if seed is not None and environment_takes_seed(factory) else factory(task)  # type: ignore[call-arg]

    open_environment.threaded = any(map(is_threaded_environment, factories.values()))  # type: ignore[attr-defined]
    return open_environment


class Chosen:
    """Stands for the functions of several tasks, each of which judges its own."""

    def __init__(self, parts: Mapping[str, Reward]) -> None:
        self.parts = parts

    def __call__(self, task: Task, trajectory: Trajectory) -> Any:
        return self.parts[task.part].function(task, trajectory)

    def check_task(self, task: Task) -> None:
        check = find_reward_check(self.parts[task.part]) if task.part in self.parts else None
        if check is not None:
            check(task)


@dataclass(frozen=True)
class PartReward(Reward):
    """Applies to the tasks of some parts; to others it gives None, which is masked."""

    parts: Mapping[str, Reward] = field(default_factory=dict)

    async def __call__(
        self,
        task: Task,
        trajectories: Sequence[Trajectory],
        seconds: float | None = SECONDS,
        state: TrainerState | None = None,
    ) -> list[Any]:
        if task.part not in self.parts:
            return [None] * len(trajectories)
        return await self.parts[task.part](task, trajectories, seconds, state)


def mix_rewards(parts: Sequence[Part]) -> list[Reward]:
    """The first one judges the answer of every task, the others stand under the names of their parts."""
    first = {part.label: part.taskset.rubric.rewards[0] for part in parts}
    weights, names = {reward.weight for reward in first.values()}, {reward.name for reward in first.values()}
    if len(weights) > 1:
        raise UserError(
            "task: the first rewards of mixed tasks, which judge the answers, have the weights "
            f"{', '.join(f'{weight:g}' for weight in sorted(weights))}; give them one"
        )
    name = names.pop() if len(names) == 1 else ANSWER
    judge = PartReward(Chosen(first), weights.pop(), name, first)
    others = [
        PartReward(Chosen({part.label: reward}), reward.weight, f"{part.label}/{reward.name}", {part.label: reward})
        for part in parts
        for reward in part.taskset.rubric.rewards[1:]
    ]
    return [judge, *others]

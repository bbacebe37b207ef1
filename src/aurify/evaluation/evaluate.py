"""Numbers on data that training never sees: task accuracy by sampling, pair accuracy, loss of held-out rows."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aurify.environments.rollout import rollout
from aurify.errors import UserError
from aurify.types import Datum, Group, Metrics, SamplingParams, Task

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.renderer import Renderer
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet


@dataclass(frozen=True)
class Evaluation:
    """accuracy: the mean of the rubric's first reward, the one that judges the answer, over held-out tasks; an answer to which it
    does not apply counts as 0. error: its standard error."""

    accuracy: float
    error: float
    num_tasks: int
    metrics: Metrics = field(default_factory=dict)  # reward, length, truncated
    groups: Sequence[Group] = ()  # the transcripts

    def record(self) -> dict[str, Any]:
        return {"value": self.accuracy, "error": self.error, "num": self.num_tasks, **self.metrics}


async def evaluate(
    taskset: TaskSet,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    *,
    num_tasks: int | None = None,
    samples_per_task: int = 1,
    seed: int = 0,
    max_context: int | None = None,
) -> Evaluation:
    """Answers to the first `num_tasks` held-out tasks (None: all), judged by the task's rubric."""
    tasks = list(taskset.heldout)[:num_tasks]
    if not tasks:
        raise UserError(f"task {taskset.name!r} has no held-out tasks to evaluate on")

    async def answer(place: int, task: Task) -> Group:
        own = replace(params, seed=params.seed if params.seed is not None else seed * 1_000_003 + place)
        trajectories = await asyncio.gather(
            *(
                rollout(task, taskset.environment(task), sampler, renderer, replace(own, seed=own.seed + k * 7919), max_context=max_context)
                for k in range(samples_per_task)
            )
        )
        await taskset.rubric.score(task, trajectories)
        return Group(task, list(trajectories))

    groups = await asyncio.gather(*(answer(place, task) for place, task in enumerate(tasks)))
    return summarise(taskset, groups)

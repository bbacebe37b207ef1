"""Preferences out of a model's own samples: of the answers to one task, the best against the worst by the task's reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from aurify.data.sources import Row
from aurify.environments.env import Environment
from aurify.environments.rollout import rollout
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.sampler import Sampler
from aurify.types import SamplingParams, Task, Trajectory


async def sample_preferences(
    tasks: Sequence[Task],
    environment: object,
    rubric: Rubric,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    group_size: int,
    seed: int,
) -> tuple[list[Row], int]:
    """Preference rows, and the number of tasks left out because all their answers earned the same (or read the same).

    environment: makes one for a task."""

    async def group(place: int, task: Task) -> Row | None:
        seeds = [(seed + 1_000_003 * place + k) % 2**63 for k in range(group_size)]
        trajectories = await asyncio.gather(
            *(rollout(task, made(environment, task), sampler, renderer, replace(params, seed=s)) for s in seeds)
        )
        await rubric.score(task, trajectories)
        return pair(task, trajectories)

    rows = await asyncio.gather(*(group(place, task) for place, task in enumerate(tasks)))
    kept = [row for row in rows if row is not None]
    return kept, len(rows) - len(kept)


def made(environment: object, task: Task) -> Environment:
    return environment(task)  # type: ignore[operator,no-any-return]


def pair(task: Task, trajectories: Sequence[Trajectory]) -> Row | None:
    """The best and the worst complete answer; None where they earned the same."""
    judged = [t for t in trajectories if t.reward is not None and t.text.strip()]
    if not judged:
        return None
    best = max(judged, key=lambda t: t.reward or 0.0)
    worst = min(judged, key=lambda t: t.reward or 0.0)
    if best.reward == worst.reward or best.text.strip() == worst.text.strip():
        return None
    values = {"prompt": task.prompt, "chosen": best.text, "rejected": worst.text, "rewards": [best.reward, worst.reward]}
    return Row(values, task.id)

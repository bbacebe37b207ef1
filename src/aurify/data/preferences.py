"""Preferences out of a model's own samples: of the answers to a task, the best against the worst by its reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from aurify.data.sources import Row
from aurify.environments.env import Environment
from aurify.environments.rollout import rollout
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.sampler import Sampler
from aurify.types import SamplingParams, Task, Trajectory

SEEDS_PER_TASK = 1_000_003


async def sample_preferences(
    tasks: Sequence[Task],
    environment: Callable[[Task], Environment],
    rubric: Rubric,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    group_size: int,
    seed: int,
) -> tuple[list[Row], int]:
    """Preference rows, and the number of tasks left out because their answers all earned the same."""

    async def sampled_pair(place: int, task: Task) -> Row | None:
        seeds = [(seed + SEEDS_PER_TASK * place + k) % 2**63 for k in range(group_size)]
        trajectories = await asyncio.gather(
            *(rollout(task, environment(task), sampler, renderer, replace(params, seed=own)) for own in seeds)
        )
        await rubric.score(task, trajectories)
        return pair(task, trajectories)

    rows = await asyncio.gather(*(sampled_pair(place, task) for place, task in enumerate(tasks)))
    kept = [row for row in rows if row is not None]
    return kept, len(rows) - len(kept)


def pair(task: Task, trajectories: Sequence[Trajectory]) -> Row | None:
    """The best answer against the worst; None where nothing tells them apart. An answer that was cut off cannot be the
    best: as an example it would teach to stop there."""
    judged = [(trajectory.reward, trajectory) for trajectory in trajectories if trajectory.reward is not None]
    judged = [(reward, trajectory) for reward, trajectory in judged if trajectory.text.strip()]
    complete = [(reward, trajectory) for reward, trajectory in judged if not trajectory.truncated]
    if not complete:
        return None
    best_reward, best = max(complete, key=lambda entry: entry[0])
    worst_reward, worst = min(judged, key=lambda entry: entry[0])
    if best_reward <= worst_reward or best.text.strip() == worst.text.strip():
        return None
    rewards = [best_reward, worst_reward]
    return Row({"prompt": task.prompt, "chosen": best.text, "rejected": worst.text, "rewards": rewards}, task.id)

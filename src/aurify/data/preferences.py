"""Preferences out of a model's own samples: of the answers to a task, the best against the worst by its reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from aurify.environments.env import Environment
from aurify.environments.player import Player, RolloutOptions
from aurify.environments.rollout import NO_LIMITS, Limits
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.rows.row import Row
from aurify.samplers.sampler import Sampler
from aurify.types import Message, SamplingParams, Task, Trajectory

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
    *,
    limits: Limits = NO_LIMITS,
    options: RolloutOptions | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> tuple[list[Row], int]:
    """Preference rows, and the number of tasks left out because their answers all earned the same. tell: is called with
    what went wrong in trajectories."""
    player = Player(environment, sampler, renderer, options, limits=limits)

    async def sample_pair(index: int, task: Task) -> Row | None:
        seeds = [(seed + SEEDS_PER_TASK * index + k) % 2**63 for k in range(group_size)]
        played = await asyncio.gather(
            *(player.play(task, replace(params, seed=own), order=(index, k)) for k, own in enumerate(seeds))
        )
        trajectories = [trajectory for trajectory in played if trajectory is not None]
        await rubric.score(task, trajectories)
        return choose_preference_pair(task, trajectories)

    rows = await asyncio.gather(*(sample_pair(index, task) for index, task in enumerate(tasks)))
    for line in player.take_lines():
        tell(line)
    if tasks and not player.num_ended:
        raise player.too_many()
    kept = [row for row in rows if row is not None]
    return kept, len(rows) - len(kept)


def choose_preference_pair(task: Task, trajectories: Sequence[Trajectory]) -> Row | None:
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
    if is_single_answer(task, best) and is_single_answer(task, worst):
        return Row({"prompt": task.prompt, "chosen": best.text, "rejected": worst.text, "rewards": rewards}, task.id)
    asked = [trajectory.messages[: trajectory.num_prompt_messages] for trajectory in (best, worst)]
    if asked[0] != asked[1] or list(best.tools) != list(worst.tools):  # answers to different questions
        return None
    row = {
        "prompt": asked[0],
        "chosen": list_policy_turns(best),
        "rejected": list_policy_turns(worst),
        "rewards": rewards,
    }
    return Row(row | ({"tools": list(best.tools)} if best.tools else {}), task.id)


def is_single_answer(task: Task, trajectory: Trajectory) -> bool:
    """One answer to the task's own prompt."""
    asked = trajectory.messages[: trajectory.num_prompt_messages]
    plain = len(trajectory.completion) == 1 and not trajectory.completion[0].get("tool_calls")
    return plain and not trajectory.tools and asked == task.prompt


def list_policy_turns(trajectory: Trajectory) -> list[Message]:
    """Up to the last one of the policy."""
    completion = list(trajectory.completion)
    while completion and not (completion[-1]["role"] == "assistant" and completion[-1].get("weight", 1.0)):
        completion.pop()
    return completion

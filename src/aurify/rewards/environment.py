"""The reward of environments that judge by themselves."""

from __future__ import annotations

from aurify.types import Task, Trajectory

REWARD = "environment"  # the name under which they give it


def environment(task: Task, trajectory: Trajectory) -> float | None:
    """What the environment gave (gymnasium, openenv, get_reward of trl): to weigh it, or to measure by it."""
    return trajectory.rewards.get(REWARD)

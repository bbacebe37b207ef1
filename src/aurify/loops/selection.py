"""Which trajectories of a group are trained."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from aurify.algorithms.hooks import hook
from aurify.types import Group, OnlineAlgorithm, Trajectory

if TYPE_CHECKING:
    from aurify.pipeline.recipe import OnlineStage


def find_advantages(
    algorithm: OnlineAlgorithm, groups: Sequence[Group]
) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float | Sequence[float]]]]:
    """For each trajectory one number that is 0 where nothing of it teaches, and what its tokens get: that number, or
    one for each turn."""
    turns = hook(algorithm, "turn_advantages")(groups)
    if turns is None:
        whole = algorithm.advantages(groups)
        return whole, whole
    return [[max(values, key=abs, default=0.0) for values in row] for row in turns], turns


def choose_trained(
    group: Group, advantages: Sequence[float], stage: OnlineStage, *, keep_flat: bool = False, needs_reward: bool = True
) -> list[int]:
    """The indices of the trajectories that are trained: not those without a reward, where the method needs one, nor the
    truncated ones where they are masked, nor, unless `keep_flat`, the policy's answers, or a guide's, where all of them
    have advantage 0."""
    pairs = list(zip(group.trajectories, advantages, strict=True))
    worth = {trajectory.source == "guidance" for trajectory, advantage in pairs if advantage}
    return [
        index
        for index, trajectory in enumerate(group.trajectories)
        if (keep_flat or (trajectory.source == "guidance") in worth)
        and (trajectory.reward is not None or not needs_reward)
        and not (trajectory.truncated and stage.truncated == "mask")
    ]


def agreeing(group: Group, indices: Sequence[int]) -> list[int]:
    """Those of a group's answers all of whose rewards are at least the mean of their group, or all at most. Rewards of
    weight 0 do not count. Advantages stay those of the whole group, so those of what is left need not have mean 0."""
    return [index for index in indices if agrees(group.trajectories[index], group)]


def agrees(trajectory: Trajectory, group: Group) -> bool:
    signs = set()
    for name, value in trajectory.rewards.items():
        weight = group.reward_weights.get(name, 1.0)
        if value is None:
            continue
        known = [other for t in group.trajectories if (other := t.rewards.get(name)) is not None]
        distance = weight * (value - fmean(known)) if min(known) < max(known) else 0.0
        signs |= {distance > 0} if distance else set()
    return len(signs) < 2

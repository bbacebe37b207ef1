"""What happened to the tokens, groups and rewards of one round of sampling."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.types import Group, Metrics

if TYPE_CHECKING:
    from aurify.loops.recipe import OnlineStage


def rollout_metrics(groups: Sequence[Group], advantages: Sequence[Sequence[float]], stage: OnlineStage) -> Metrics:
    """Rewards and lengths over all trajectories, trained or not, and what was left out of training and why."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = [trajectory.reward for trajectory in trajectories if trajectory.reward is not None]
    lengths = [trajectory.num_policy_tokens for trajectory in trajectories]
    num_truncated = sum(trajectory.truncated for trajectory in trajectories)
    metrics = {
        "rollout/length": statistics.fmean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": num_truncated / len(trajectories),
        "ledger/tokens_sampled": float(sum(lengths)),
        "ledger/trajectories": float(len(trajectories)),
        "ledger/trajectories_without_reward": float(len(trajectories) - len(rewards)),
        "ledger/trajectories_masked": float(num_truncated if stage.truncated == "mask" else 0),
        "ledger/groups": float(len(groups)),
        "ledger/groups_without_spread": float(sum(not any(values) for values in advantages)),
    }
    if rewards:
        metrics["reward/mean"] = statistics.fmean(rewards)
        metrics["reward/std"] = statistics.pstdev(rewards)
    for name in sorted({name for trajectory in trajectories for name in trajectory.rewards}):
        values = [value for t in trajectories if (value := t.rewards.get(name)) is not None]
        if values:
            metrics[f"reward/{name}"] = statistics.fmean(values)
    versions = [
        len({version for t in group.trajectories for segment in t.segments for version in segment.versions or ()}) > 1
        for group in groups
    ]
    metrics["ledger/groups_mixing_versions"] = float(sum(versions))
    for name in sorted({name for trajectory in trajectories for name in trajectory.metrics}):
        values = [t.metrics[name] for t in trajectories if name in t.metrics]
        metrics[f"rollout/{name}"] = statistics.fmean(values)
    return metrics

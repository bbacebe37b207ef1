"""What happened to the tokens, groups and rewards of one round of sampling."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.types import Group, Metrics

if TYPE_CHECKING:
    from aurify.pipeline.recipe import OnlineStage


def rollout_metrics(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    stage: OnlineStage,
    discarded: Sequence[Group] = (),
) -> Metrics:
    """Rewards and lengths over all that the policy sampled for these groups, trained or not, and what was left out of
    training and why. discarded: what was sampled and then replaced; it counts for tokens alone."""
    every = [trajectory for group in groups for trajectory in group.trajectories]
    trajectories = [trajectory for trajectory in every if trajectory.source == "policy"]
    rewards = [trajectory.reward for trajectory in trajectories if trajectory.reward is not None]
    lengths = [trajectory.num_policy_tokens for trajectory in trajectories]
    num_truncated = sum(trajectory.truncated for trajectory in trajectories)
    continued = sum(t.num_policy_tokens for t in every if t.source == "guidance")  # after a guide's beginning
    wasted = sum(t.num_policy_tokens for group in discarded for t in group.trajectories if t.source != "replay")
    metrics = {
        "ledger/tokens_sampled": float(sum(lengths) + continued + wasted),
        "ledger/trajectories": float(len(every)),
        "ledger/trajectories_without_reward": float(sum(trajectory.reward is None for trajectory in every)),
        "ledger/trajectories_masked": float(num_truncated if stage.truncated == "mask" else 0),
        "ledger/trajectories_truncated": float(num_truncated),
        "ledger/environment_values_failed": float(sum(len(trajectory.problems) for trajectory in every)),
        "ledger/groups": float(len(groups)),
        "ledger/groups_without_spread": float(sum(not any(values) for values in advantages)),
    }
    if trajectories:
        metrics["rollout/length"] = statistics.fmean(lengths)
        metrics["rollout/length_max"] = float(max(lengths))
        metrics["rollout/truncated"] = num_truncated / len(trajectories)
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
    if stage.dynamic_sampling or stage.guidance is not None:
        metrics |= {"ledger/groups_discarded": float(len(discarded)), "ledger/tokens_discarded": float(wasted)}
    if stage.guidance is not None:
        metrics |= guidance_metrics(groups)
    return metrics


def guidance_metrics(groups: Sequence[Group]) -> Metrics:
    guided = [[t for t in group.trajectories if t.source == "guidance"] for group in groups]
    rewards = [trajectory.reward for row in guided for trajectory in row if trajectory.reward is not None]
    num_tokens = sum(
        len(segment.tokens)
        for row in guided
        for trajectory in row
        for segment in trajectory.segments
        if segment.origin == "guidance"
    )
    metrics = {
        "ledger/groups_without_guidance": float(sum(not row for row in guided)),
        "ledger/tokens_guided": float(num_tokens),
        "guidance/trajectories": float(sum(map(len, guided))),
    }
    return metrics | ({"guidance/reward": statistics.fmean(rewards)} if rewards else {})


def means_by_source(metrics: Metrics) -> Metrics:
    """An algorithm can only sum over all tokens. What it says of some of them (a guide's, replayed ones, those of which
    a sampler's log-probs are known, those whose entropy counts) becomes a mean over these, by the share of them that it
    tells beside; a step without such tokens says nothing of them."""
    result = dict(metrics)
    for part in ("guidance", "replay", "sampler", "entropy"):
        share = metrics.get(f"loss/{part}_share")
        if share is None:
            continue
        for name in metrics:
            if (name == f"loss/{part}" or name.startswith(f"loss/{part}_")) and not name.endswith("_share"):
                if share:
                    result[name] = metrics[name] / share
                else:
                    del result[name]
    return result

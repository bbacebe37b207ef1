"""What happened to the tokens, groups and rewards of one round of sampling."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aurify.rewards.rubric import mean_rewards
from aurify.types import Group, Metrics, Trajectory

if TYPE_CHECKING:
    from aurify.loops.rollouts import Round
    from aurify.pipeline.recipe import OnlineStage


def rollout_metrics(made: Round, advantages: Sequence[Sequence[float]], stage: OnlineStage) -> Metrics:
    """Rewards and lengths over all that the policy sampled for the groups of a round, trained or not, and what was left
    out of training and why. What was sampled and then replaced counts for tokens alone, and so does what was sampled by
    a trajectory that failed. advantages: of the groups that are not empty."""
    groups = made.filled
    every = [trajectory for group in groups for trajectory in group.trajectories]
    own = [trajectory for trajectory in every if trajectory.source == "policy"]
    num_truncated = sum(trajectory.truncated for trajectory in own)
    continued = count_rollout_tokens(t for t in every if t.source == "guidance")  # after a guide's beginning
    wasted = count_rollout_tokens(t for group in made.discarded for t in group.trajectories if t.source != "replay")
    failed = made.failures.get("ledger/tokens_failed", 0.0)
    versions = [{v for t in group.trajectories for s in t.segments for v in s.versions or ()} for group in groups]
    metrics = {
        "ledger/tokens_sampled": float(count_rollout_tokens(own) + continued + wasted + failed),
        "ledger/trajectories": float(len(every)),
        "ledger/trajectories_without_reward": float(sum(trajectory.reward is None for trajectory in every)),
        "ledger/trajectories_masked": float(num_truncated if stage.truncated == "mask" else 0),
        "ledger/trajectories_truncated": float(num_truncated),
        "ledger/environment_values_failed": float(sum(len(trajectory.problems) for trajectory in every)),
        "ledger/groups": float(len(groups)),
        "ledger/groups_failed": float(len(made.groups) - len(groups)),
        "ledger/groups_without_spread": float(sum(not any(values) for values in advantages)),
        "ledger/groups_mixing_versions": float(sum(len(row) > 1 for row in versions)),
        **made.failures,
        **policy_metrics(own),
        **mixed_task_metrics(groups),
    }
    if stage.dynamic_sampling or stage.guidance is not None:
        metrics |= {"ledger/groups_discarded": float(len(made.discarded)), "ledger/tokens_discarded": float(wasted)}
    if stage.guidance is not None:
        metrics |= guidance_metrics(groups)
    return metrics


def mixed_task_metrics(groups: Sequence[Group]) -> Metrics:
    """What the policy earned in each of several mixed tasks, and how many prompts it had of them."""
    metrics: Metrics = {}
    for part in sorted({group.task.part for group in groups if group.task.part}):
        chosen = [group for group in groups if group.task.part == part]
        own = [t for group in chosen for t in group.trajectories if t.source == "policy"]
        metrics[f"ledger/groups_{part}"] = float(len(chosen))
        told = policy_metrics(own)
        metrics |= {f"reward/{part}/mean": told["reward/mean"]} if "reward/mean" in told else {}
        names = ("rollout/length", "rollout/truncated")
        metrics |= {f"{name.replace('/', f'/{part}/')}": told[name] for name in names if name in told}
    return metrics


def count_rollout_tokens(trajectories: Iterable[Trajectory]) -> int:
    return sum(trajectory.num_policy_tokens for trajectory in trajectories)


def policy_metrics(own: Sequence[Trajectory]) -> Metrics:
    """Lengths, rewards and the environment's metrics of the policy's own trajectories."""
    if not own:
        return {}
    lengths = [trajectory.num_policy_tokens for trajectory in own]
    metrics = {
        "rollout/length": statistics.fmean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": statistics.fmean(trajectory.truncated for trajectory in own),
    }
    if any(len(trajectory.turns) > 1 or trajectory.tools for trajectory in own):
        metrics |= conversation_metrics(own)
    rewards = [trajectory.reward for trajectory in own if trajectory.reward is not None]
    if rewards:
        metrics |= {"reward/mean": statistics.fmean(rewards), "reward/std": statistics.pstdev(rewards)}
    metrics |= {f"reward/{name}": mean for name, mean in mean_rewards(own).items()}
    for name in sorted({name for trajectory in own for name in trajectory.metrics}):
        metrics[f"rollout/{name}"] = statistics.fmean(t.metrics[name] for t in own if name in t.metrics)
    return metrics


def conversation_metrics(own: Sequence[Trajectory]) -> Metrics:
    """Turns, what environments and tools said, and how trajectories ended."""
    num_environment = sum(turn.environment_tokens for t in own for turn in t.turns)
    metrics = {
        "rollout/turns": statistics.fmean(len(trajectory.turns) for trajectory in own),
        "rollout/environment_share": num_environment / max(1, num_environment + count_rollout_tokens(own)),
        "ledger/turns": float(sum(len(trajectory.turns) for trajectory in own)),
        "ledger/tokens_environment": float(num_environment),
        "time/environment": sum(turn.environment_seconds for t in own for turn in t.turns) / len(own),
    }
    for outcome, num in Counter(trajectory.outcome for trajectory in own).items():
        if outcome != "done":
            metrics[f"ledger/trajectories_{outcome}"] = float(num)
    return metrics


def guidance_metrics(groups: Sequence[Group]) -> Metrics:
    guided = [[t for t in group.trajectories if t.source == "guidance"] for group in groups]
    every = [trajectory for row in guided for trajectory in row]
    rewards = [trajectory.reward for trajectory in every if trajectory.reward is not None]
    given = (len(segment.tokens) for t in every for segment in t.segments if segment.origin == "guidance")
    metrics = {
        "ledger/groups_without_guidance": float(sum(not row for row in guided)),
        "ledger/tokens_guided": float(sum(given)),
        "guidance/trajectories": float(len(every)),
    }
    return metrics | ({"guidance/reward": statistics.fmean(rewards)} if rewards else {})


def means_by_source(metrics: Metrics) -> Metrics:
    """An algorithm can only sum over all tokens. What it says of some of them (a guide's, replayed ones, those whose
    sampler log-probs are known, those whose entropy counts) becomes a mean over these, by the share of them that it
    tells beside it. A step without such tokens says nothing of them."""
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

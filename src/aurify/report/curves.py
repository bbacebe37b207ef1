"""Which metrics of a stage go into which chart of its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.report.plot import Series, draw_lines

Rows = Sequence[dict[str, Any]]  # one a step: its metrics, and its ledger entries


@dataclass(frozen=True)
class Chart:
    """Metrics with their names in the legend. It is left out where a stage has none of them."""

    title: str
    metrics: dict[str, str]
    spread: str | None = None  # metric whose value is the half height of a band
    bounds: tuple[float, float] | None = None


# What a person looks at first: is it learning?
LEARNING = (
    Chart("Pairs ranked right", {"reward/accuracy": "accuracy"}, bounds=(0, 1)),
    Chart("Reward", {"reward/mean": "reward"}, spread="reward/std"),
    Chart("Margin of the chosen", {"reward/margin": "margin"}),
    Chart("Chosen minus rejected", {"reward/gap": "gap"}),
    Chart("Implicit rewards", {"reward/chosen": "chosen", "reward/rejected": "rejected"}),
    Chart("Completion length", {"rollout/length": "mean", "rollout/length_max": "longest"}),
    Chart("Completions cut off", {"rollout/truncated": "share"}, bounds=(0, 1)),
    Chart("Tool calls an answer", {"rollout/tool_calls": "made", "rollout/calls_failed": "failed"}),
    Chart("Searches an answer", {"rollout/searches": "made", "rollout/searches_refused": "refused"}),
    Chart("Loss", {"loss": "training", "eval/loss": "held out"}),
    Chart("KL to the reference", {"loss/kl": "kl"}),
    Chart("Entropy", {"loss/entropy": "entropy"}),
    Chart("Gradient norm", {"optim/grad_norm": "norm"}),
    Chart("A guide's tokens: mean probability", {"loss/guidance_probability": "probability"}, bounds=(0, 1)),
    Chart("Replay buffer", {"replay/trajectories": "trajectories", "replay/questions": "questions"}),
)
# How it ran: folded
RUNNING = (
    Chart("Learning rate", {"optim/lr": "rate"}),
    Chart("Sampler against trainer, |log p|", {"loss/sampler_gap": "gap"}),
    Chart("Clipped tokens", {"loss/clip_low": "low", "loss/clip_high": "high"}),
    Chart("Ratio to the old policy", {"loss/ratio": "ratio"}),
    Chart("Groups without spread", {"ledger/groups_without_spread": "groups"}),
    Chart("Groups drawn again", {"ledger/groups_discarded": "groups"}),
    Chart("Questions that are always right", {"replay/retired": "retired"}),
    Chart("Questions by successes", {f"replay/bucket_{k}": f"{k} right" for k in range(1, 64)}),
    Chart("Tokens a second", {"time/tokens_per_second": "trained", "time/sampled_per_second": "sampled"}),
    Chart("Seconds a step", {"time/step": "all", "time/sample": "sampling", "time/train": "training"}),
    Chart("Peak memory in GiB", {"memory/peak_gb": "memory"}),
)
NAMED = {name for chart in (*LEARNING, *RUNNING) for name in chart.metrics} | {"reward/std", "step"}


def draw_learning_curves(rows: Rows) -> list[str]:
    return draw_charts((*list_heldout_charts(rows), *LEARNING, *list_reward_charts(rows)), rows)


def draw_running_curves(rows: Rows) -> list[str]:
    """Also metrics that nobody here has heard of, each alone."""
    return draw_charts((*RUNNING, *list_other_charts(rows)), rows)


def draw_charts(charts: Iterable[Chart], rows: Rows) -> list[str]:
    found = ((chart, collect_curve_series(chart, rows)) for chart in charts)
    return [draw_lines(chart.title, series, chart.bounds) for chart, series in found if series]


def collect_curve_series(chart: Chart, rows: Rows) -> list[Series]:
    """A curve for each metric that some step has. Steps without it, or where it is no number, are passed over."""
    curves = []
    for metric, name in chart.metrics.items():
        known = [row for row in rows if row.get(metric) is not None]
        if known:
            spread = [row.get(chart.spread) for row in known] if chart.spread else [None]
            steps, values = [row["step"] for row in known], [row[metric] for row in known]
            curves.append(Series(name, steps, values, None if None in spread else spread))  # type: ignore[arg-type]
    return curves


def list_reward_charts(rows: Rows) -> list[Chart]:
    """The parts of the reward, where there is more than one."""
    parts = [name for name in list_charted_metrics(rows) if name.startswith("reward/") and name not in NAMED]
    return [Chart("Rewards by name", {name: name.partition("/")[2] for name in parts})] if len(parts) > 1 else []


def list_heldout_charts(rows: Rows) -> list[Chart]:
    """Before and after, with the standard error as a band."""
    parts = [name for name in list_charted_metrics(rows) if name.startswith("eval/") and not name.endswith("_error")]
    return [
        Chart(f"Held-out {name.partition('/')[2].replace('_', ' ')}", {name: name}, spread=f"{name}_error")
        for name in parts
        if name not in NAMED
    ]


def list_other_charts(rows: Rows) -> list[Chart]:
    shown = ("reward/", "eval/", "ledger/")
    return [
        Chart(name, {name: name})
        for name in list_charted_metrics(rows)
        if name not in NAMED and not name.startswith(shown)
    ]


def list_charted_metrics(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))

"""PNG pictures of a stage's rewards, and its numbers as one file, for papers and notebooks (extra `plots`).

They are made of samples.jsonl: all of it with `samples_every: 1`, else of the steps whose answers were written down."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.files import replaced_file, require
from aurify.tracking import jsonl
from aurify.tracking.run_folder import RunFolder, StageFolder

STATS, OVER_TIME, DISTRIBUTION = "training_stats.json", "rewards_over_time.png", "rewards_distribution.png"
NUM_BINS = 20
Rewards = Mapping[str, Mapping[int, Sequence[float]]]  # by name and step


def draw_pictures(run: Path) -> list[Path]:
    """Writes what is drawn into the folders of the stages that sampled answers."""
    folder = RunFolder.open(run)
    stages = [folder.stage_folder(name) for name in folder.results()]
    known = {stage.name: (stage, found) for stage in stages if (found := gather_drawn_rewards(stage))}
    if not known:
        raise UserError(f"{run}: no stage has answers with rewards (samples.jsonl); set samples_every in such a stage")
    written: list[Path] = []
    for stage, rewards in known.values():
        jsonl.write_run_file(stage.path / STATS, sum_up_drawn_rewards(stage, rewards))
        written += [stage.path / STATS, draw_over_time(stage, rewards), draw_distribution(stage, rewards)]
    return written


def gather_drawn_rewards(stage: StageFolder) -> Rewards:
    """What the policy's own answers earned. "reward" is what became of all of them, which the policy was trained by."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in jsonl.read_log(stage.samples):
        if row.get("source", "policy") != "policy":
            continue
        for name, value in {**row["rewards"], "reward": row["reward"]}.items():
            if value is not None:
                found[name][row["step"]].append(value)
    return found


def sum_up_drawn_rewards(stage: StageFolder, rewards: Rewards) -> dict[str, Any]:
    """Of each step its metrics, and of each reward the mean, deviation and number of values."""
    steps = {row["step"]: dict(row) for row in jsonl.read_log(stage.metrics)}
    told = {
        name: {
            "steps": sorted(by_step),
            "mean": [statistics.fmean(by_step[step]) for step in sorted(by_step)],
            "std": [statistics.pstdev(by_step[step]) for step in sorted(by_step)],
            "num": [len(by_step[step]) for step in sorted(by_step)],
        }
        for name, by_step in rewards.items()
    }
    return {"stage": stage.name, "rewards": told, "steps": [steps[step] for step in sorted(steps)]}


def draw_over_time(stage: StageFolder, rewards: Rewards) -> Path:
    """A panel a reward: the mean of each step, and half a standard deviation to both sides."""
    figure, panels = open_figure(len(rewards))
    for panel, (name, by_step) in zip(panels, sorted(rewards.items()), strict=True):
        steps = sorted(by_step)
        means = [statistics.fmean(by_step[step]) for step in steps]
        half = [statistics.pstdev(by_step[step]) / 2 for step in steps]
        below, above = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
        panel.fill_between(steps, below, above, alpha=0.2, linewidth=0)
        panel.plot(steps, means, marker="." if len(steps) < 40 else "")
        panel.set(title=name, xlabel="step")
        panel.xaxis.get_major_locator().set_params(integer=True)
    return save_picture(figure, stage.path / OVER_TIME)


def draw_distribution(stage: StageFolder, rewards: Rewards) -> Path:
    """A panel a reward: how its values are spread in the first and in the last third of the steps."""
    figure, panels = open_figure(len(rewards))
    for panel, (name, by_step) in zip(panels, sorted(rewards.items()), strict=True):
        steps = sorted(by_step)
        third = max(1, len(steps) // 3)
        parts = {"first": steps[:third], "last": steps[-third:]}
        values = {part: [value for step in chosen for value in by_step[step]] for part, chosen in parts.items()}
        every = [value for part in values.values() for value in part]
        edges = (min(every), max(every) if max(every) > min(every) else min(every) + 1)
        for part, part_values in values.items():
            label = f"steps {parts[part][0]} to {parts[part][-1]}"
            share = [1 / len(part_values)] * len(part_values)
            panel.hist(part_values, bins=NUM_BINS, range=edges, weights=share, alpha=0.5, label=label)
        panel.set(title=name, xlabel="value", ylabel="share of answers")
        panel.legend()
    return save_picture(figure, stage.path / DISTRIBUTION)


def open_figure(num: int) -> tuple[Any, list[Any]]:
    require("matplotlib", "plots", "to draw pictures")
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    columns = min(num, 3)
    rows = -(-num // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(num)]


def save_picture(figure: Any, path: Path) -> Path:
    with replaced_file(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
    return path

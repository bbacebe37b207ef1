"""Takes what a stage reports and hands it to every tracker. A new tracker is one file in `trackers/`, and its name in
the list below."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aurify.tracking.machine import read_run_memory
from aurify.tracking.run_folder import StageFolder
from aurify.tracking.trackers import Tracker
from aurify.tracking.trackers.console import Console
from aurify.tracking.trackers.files import Files
from aurify.tracking.trackers.tensorboard import TensorBoard
from aurify.types import Group, Metrics

FLAT_STEPS = (5, 25, 125)  # after so many in a row it is told


class StageTracker:
    """One stage's reports. Steps count from 1."""

    def __init__(self, folder: StageFolder, console: Console, *, show_samples: bool = False) -> None:
        self.folder = folder
        self.also: Callable[[], Metrics] = dict  # what a stage reports with every step, beside what its loop measures
        self.last_step = 0
        self.num_flat = 0  # steps in a row in which nothing could be learned
        self.told: set[str] = set()  # metrics of which it was told that they are no number
        self.trackers: list[Tracker] = [Files(folder), TensorBoard(folder.tensorboard), console]
        console.open_log(folder.console, show_samples=show_samples)

    def start(self, total: int, start: int = 0) -> None:
        """Before step `start + 1`."""
        self.last_step = start
        for tracker in self.trackers:
            tracker.start(total, start)
            if tracker.missing:
                self.event(tracker.missing, quiet=True)
        self.event(f"steps {start + 1} to {total}", quiet=True)

    def step(self, step: int, metrics: Metrics) -> None:
        """What differs between two runs of one recipe is named `time/` or `memory/`."""
        metrics = {name: float(value) for name, value in {**metrics, **self.also()}.items()}
        metrics["memory/peak_gb"] = read_run_memory()
        self.last_step = step
        for tracker in self.trackers:
            tracker.step(step, metrics)
        for name, value in metrics.items():
            if not math.isfinite(value) and name not in self.told:
                self.event(f"step {step}: {name} is {value}")
                self.told.add(name)
        self.watch_groups(metrics)

    def watch_groups(self, metrics: Metrics) -> None:
        groups = metrics.get("ledger/groups", 0.0)
        all_flat = groups > 0 and metrics.get("ledger/groups_without_spread") == groups
        self.num_flat = self.num_flat + 1 if all_flat else 0
        if self.num_flat in FLAT_STEPS:
            self.event(
                f"{self.num_flat} steps in a row have taught nothing: all answers to a question earned the same. Take "
                "easier or harder tasks, more completions_per_prompt, a higher sampling.temperature, or a reward "
                "of more than two values"
            )

    def heldout(self, measure: str, value: float, details: Mapping[str, Any]) -> None:
        """A held-out number of the model as it is now, with its standard error and margin where it has them."""
        name = measure.removeprefix("held-out ").replace(" ", "_")
        metrics = {f"eval/{name}": value, f"eval/{name}_error": details.get("error", 0.0)}
        if "margin" in details:
            metrics |= {"eval/margin": details["margin"], "eval/margin_error": details["margin_error"]}
        for tracker in self.trackers:
            tracker.heldout(self.last_step, metrics)

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        for tracker in self.trackers:
            tracker.samples(step, groups)

    def event(self, text: str, *, quiet: bool = False) -> None:
        """A line in events.log and, unless quiet, on the console."""
        for tracker in self.trackers:
            tracker.event(text, quiet=quiet)

    def finish(self) -> None:
        for tracker in self.trackers:
            tracker.finish()

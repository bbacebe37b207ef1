"""Takes what a stage reports and hands it to every tracker. A new tracker is one file in `trackers/`, and its name in
the list below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from aurify.tracking.machine import read_peak_memory
from aurify.tracking.run_folder import StageFolder
from aurify.tracking.trackers import Tracker
from aurify.tracking.trackers.console import Console
from aurify.tracking.trackers.files import Files
from aurify.tracking.trackers.tensorboard import TensorBoard
from aurify.types import Group, Metrics


class StageTracker:
    """One stage's reports. Steps count from 1."""

    def __init__(self, folder: StageFolder, console: Console, *, show_samples: bool = False) -> None:
        self.folder = folder
        self.also: Callable[[], Metrics] = dict  # what a stage reports with every step, beside what its loop measures
        self.told: set[str] = set()  # metrics of which it was told that they are no number
        self.trackers: list[Tracker] = [Files(folder), TensorBoard(folder.tensorboard), console]
        console.open_log(folder.console, show_samples=show_samples)

    def start(self, total: int, start: int = 0) -> None:
        """Before step `start + 1`."""
        for tracker in self.trackers:
            tracker.start(total, start)
            if tracker.missing:
                self.event(tracker.missing, quiet=True)
        self.event(f"steps {start + 1} to {total}", quiet=True)

    def step(self, step: int, metrics: Metrics) -> None:
        """What differs between two runs of one recipe is named `time/` or `memory/`."""
        metrics = {name: float(value) for name, value in {**metrics, **self.also()}.items()}
        metrics["memory/peak_gb"] = read_peak_memory()
        for tracker in self.trackers:
            tracker.step(step, metrics)
        for name, value in metrics.items():
            if not math.isfinite(value) and name not in self.told:
                self.event(f"step {step}: {name} is {value}")
                self.told.add(name)

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

"""Takes what a stage reports and hands it to the console and the files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from aurify.tracking import jsonl, tensorboard
from aurify.tracking.console import Console
from aurify.tracking.memory import peak_memory_gb
from aurify.tracking.run_folder import StageFolder
from aurify.types import Group, Metrics, Trajectory


class StageTracker:
    """One stage's reports. Steps count from 1; a step's record is complete on disk when `step` returns."""

    def __init__(self, folder: StageFolder, console: Console, *, show_samples: bool = False) -> None:
        self.folder, self.console, self.show_samples = folder, console, show_samples
        self.writer: Any = None
        self.also: Callable[[], Metrics] = dict  # what a stage reports with every step, beside what its loop measures
        self.broken: set[str] = set()  # metrics that have been told to be no number
        console.log_to(folder.console)

    def start(self, total: int, start: int = 0) -> None:
        """Before step `start + 1`. Records of later steps, which a killed run left, are cut off: they are run again."""
        for file in (self.folder.metrics, self.folder.ledger, self.folder.samples):
            jsonl.cut(file, start)
        self.writer = tensorboard.open_writer(self.folder.tensorboard, start + 1)
        if self.writer is None:
            self.event("no TensorBoard files: the package is missing (pip install 'aurify[tensorboard]')", quiet=True)
        self.event(f"steps {start + 1} to {total}", quiet=True)
        self.console.begin(total, start)

    def step(self, step: int, metrics: Metrics) -> None:
        """Metrics are named `area/name`; those of the area `ledger` get a file of their own. What differs from run to
        run of the same recipe is named `time/` or `memory/`."""
        metrics = {name: float(value) for name, value in {**metrics, **self.also()}.items()}
        metrics["memory/peak_gb"] = peak_memory_gb()
        counted = {name: value for name, value in metrics.items() if name.startswith("ledger/")}
        measured = {name: value for name, value in metrics.items() if name not in counted}
        jsonl.append(self.folder.metrics, {"step": step, **valid(measured)})
        if counted:
            jsonl.append(self.folder.ledger, {"step": step, **valid(counted)})
        if self.writer is not None:
            tensorboard.write(self.writer, step, metrics)
        self.console.step(step, metrics)
        for name, value in metrics.items():
            if not math.isfinite(value) and name not in self.broken:
                self.event(f"step {step}: {name} is {value}")
                self.broken.add(name)

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """All trajectories of a step, with what they earned."""
        records = (sample_record(group, trajectory) for group in groups for trajectory in group.trajectories)
        jsonl.append(self.folder.samples, *({"step": step, **record} for record in records))
        if self.show_samples:
            self.console.samples(groups)

    def event(self, text: str, *, quiet: bool = False) -> None:
        """Something worth a line in events.log and, unless quiet, on the console."""
        with self.folder.events.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(text.splitlines())}\n")
        if not quiet:
            self.console.print(Text(text, style="dim"))

    def finish(self) -> None:
        self.console.end()
        self.console.log_to(None)
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def valid(metrics: Metrics) -> dict[str, float | None]:
    """JSON has no word for NaN and infinity: they become null, and an event tells which it was."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def sample_record(group: Group, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "task": group.task.id,
        "answer": group.task.answer,
        "messages": trajectory.messages,
        "reward": trajectory.reward,
        "rewards": trajectory.rewards,
        "tokens": trajectory.num_policy_tokens,
        "truncated": trajectory.truncated,
        "source": trajectory.source,
    }

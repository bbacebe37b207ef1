"""Takes what a stage reports and hands it to the console and the files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

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
        metrics = metrics | {"memory/peak_gb": peak_memory_gb()}
        counted = {name: value for name, value in metrics.items() if name.startswith("ledger/")}
        jsonl.append(self.folder.metrics, {"step": step, **{n: v for n, v in metrics.items() if n not in counted}})
        if counted:
            jsonl.append(self.folder.ledger, {"step": step, **counted})
        if self.writer is not None:
            tensorboard.write(self.writer, step, metrics)
        self.console.step(step, metrics)

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        for group in groups:
            for trajectory in group.trajectories:
                jsonl.append(self.folder.samples, {"step": step, **sample_record(group, trajectory)})
        if self.show_samples:
            self.console.samples(groups)

    def event(self, text: str, *, quiet: bool = False) -> None:
        """Something worth a line in events.log and, unless quiet, on the console."""
        with self.folder.events.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if not quiet:
            self.console.print(f"[dim]{text}[/]")

    def finish(self) -> None:
        self.console.end()
        self.console.log_to(None)
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def sample_record(group: Group, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "task": group.task.id,
        "answer": group.task.answer,
        "messages": trajectory.messages,
        "reward": trajectory.reward,
        "rewards": trajectory.rewards,
        "tokens": trajectory.num_policy_tokens,
        "truncated": trajectory.truncated,
    }

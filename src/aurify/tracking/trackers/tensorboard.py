"""Curves for TensorBoard (extra `tensorboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.files import require
from aurify.tracking.trackers import Tracker
from aurify.types import Metrics


class TensorBoard(Tracker):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.waiting: list[tuple[int, Metrics]] = []  # held-out numbers from before the start

    def start(self, total: int, start: int) -> None:
        try:
            self.writer = open_summary_writer(self.folder, start + 1)
        except UserError as error:
            self.missing = str(error)
        for step, metrics in self.waiting:
            self.step(step, metrics)

    def heldout(self, step: int, metrics: Metrics) -> None:
        if self.writer is None:
            self.waiting.append((step, metrics))
        else:
            self.step(step, metrics)

    def step(self, step: int, metrics: Metrics) -> None:
        if self.writer is None:
            return
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def open_summary_writer(folder: Path, first_step: int) -> Any:
    """Steps from `first_step` on replace those of a killed run."""
    tensorboard = require("torch.utils.tensorboard", "tensorboard", "for curves in TensorBoard")
    return tensorboard.SummaryWriter(str(folder), purge_step=first_step)

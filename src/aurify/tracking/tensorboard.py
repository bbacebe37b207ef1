"""Curves for TensorBoard (extra `tensorboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aurify.types import Metrics


def open_writer(folder: Path, first_step: int) -> Any:
    """A writer, or None where the package is missing. Steps from `first_step` on replace those of a killed run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


def write(writer: Any, step: int, metrics: Metrics) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    writer.flush()

"""The files of a stage: metrics.jsonl, ledger.jsonl, samples.jsonl and events.log. A record is complete on disk when
the call returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aurify.tracking import jsonl
from aurify.tracking.run_folder import StageFolder
from aurify.tracking.samples import record_sample
from aurify.tracking.trackers import Tracker
from aurify.types import Group, Metrics


class Files(Tracker):
    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder

    def start(self, total: int, start: int) -> None:
        for file in (self.folder.metrics, self.folder.ledger, self.folder.samples, self.folder.heldout):
            jsonl.drop_log_after(file, start)

    def step(self, step: int, metrics: Metrics) -> None:
        """The area `ledger` has a file of its own."""
        values = null_infinite_metrics(metrics)
        counted = {name: value for name, value in values.items() if name.startswith("ledger/")}
        measured = {name: value for name, value in values.items() if name not in counted}
        jsonl.append_log(self.folder.metrics, {"step": step, **measured})
        if counted:
            jsonl.append_log(self.folder.ledger, {"step": step, **counted})

    def heldout(self, step: int, metrics: Metrics) -> None:
        jsonl.append_log(self.folder.heldout, {"step": step, **null_infinite_metrics(metrics)})

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        records = (record_sample(group, trajectory) for group in groups for trajectory in group.trajectories)
        jsonl.append_log(self.folder.samples, *({"step": step, **record} for record in records))

    def event(self, text: str, *, quiet: bool) -> None:
        self.folder.log(" ".join(text.splitlines()))


def null_infinite_metrics(metrics: Metrics) -> dict[str, float | None]:
    """JSON has no word for NaN and infinity: they become null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

"""Where the reports of a stage go: one file a tracker. `tracking/tracker.py` lists them."""

from __future__ import annotations

from collections.abc import Sequence

from aurify.types import Group, Metrics


class Tracker:
    """Hears what a stage reports. A tracker overrides what it has use for. Steps count from 1."""

    missing = ""  # why this tracker cannot write, and the mend

    def start(self, total: int, start: int) -> None:
        """Before step `start + 1` of `total`. What a killed run left of later steps is replaced."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Metrics are named `area/name`."""

    def heldout(self, step: int, metrics: Metrics) -> None:
        """Held-out numbers, named `eval/name` and `eval/name_error`, of the model after a step; 0: as it came."""

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """All trajectories of a step, with what they earned."""

    def event(self, text: str, *, quiet: bool) -> None:
        """Something worth a line. A quiet one is no news for whoever is watching."""

    def finish(self) -> None:
        """The stage has ended, well or badly."""

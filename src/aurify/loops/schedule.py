"""Held-out numbers while a stage trains: which step was the best, and whether it is time to stop.

The history is part of every checkpoint, and the best step is exported before the checkpoint that tells of it is
written, so a resumed run knows what the straight one knows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurify.errors import UserError
from aurify.files import new_folder

if TYPE_CHECKING:
    from aurify.engine.engine import Engine


@dataclass(frozen=True)
class Entry:
    """The held-out number after a step, and what belongs to it."""

    step: int
    value: float
    details: dict[str, Any]


@dataclass
class Schedule:
    """measure: the number of the model as it is now. tell: is given each entry, and whether it is the best so far."""

    measure: Callable[[], tuple[float, dict[str, Any]]]
    tell: Callable[[Entry, bool], None]
    every: int
    falls: bool  # the number is a loss
    keep_best: bool
    stop_after: int | None  # evaluations without a better number
    folder: Path  # of the best step's model
    total: int = 0  # steps of the stage
    history: list[Entry] = field(default_factory=list)

    def is_due(self, step: int) -> bool:
        """The last step is measured too, so that it may be the best."""
        known = self.history[-1].step if self.history else 0
        return known < step and (step % self.every == 0 or step == self.total)

    def evaluate(self, step: int, engine: Engine) -> bool:
        """Whether the number is the best so far; its model is then exported."""
        entry = Entry(step, *self.measure())
        better = self.best is None or self.rank(entry) > self.rank(self.best)
        if better and self.keep_best:
            with new_folder(self.find_export(step), replace=True) as scratch:
                engine.export(scratch)
        self.history.append(entry)
        self.tell(entry, better)
        return better

    def rank(self, entry: Entry) -> float:
        """The larger the better. A number that is none is worse than any other."""
        if math.isnan(entry.value):
            return -math.inf
        return -entry.value if self.falls else entry.value

    @property
    def best(self) -> Entry | None:
        """The first of the best."""
        return max(self.history, key=self.rank, default=None)

    @property
    def is_over(self) -> bool:
        """The best number has not been beaten for so many evaluations."""
        best = self.best
        return best is not None and self.stop_after is not None and self.count_since(best) >= self.stop_after

    def count_since(self, entry: Entry) -> int:
        return sum(later.step > entry.step for later in self.history)

    @property
    def final(self) -> Entry | None:
        """The entry of the model that the stage leaves. None: it has not been measured."""
        last = self.history[-1] if self.history else None
        return self.best if self.keep_best else last

    # ------------------------------------------------------------------ what is kept

    def find_export(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def drop_worse_exports(self) -> None:
        for path in self.folder.glob("step_*"):
            if self.best is None or path != self.find_export(self.best.step):
                shutil.rmtree(path)

    def export(self, engine: Engine, folder: Path) -> None:
        """Writes the model that the stage leaves."""
        if self.best is None or not self.keep_best:
            engine.export(folder)
        else:
            shutil.copytree(self.find_export(self.best.step), folder)

    def to_record(self) -> list[list[Any]]:
        return [[entry.step, entry.value, entry.details] for entry in self.history]

    def load(self, record: Sequence[Sequence[Any]]) -> None:
        """The history of a checkpoint."""
        self.history = [Entry(*row) for row in record]
        best = self.best
        if best is not None and self.keep_best and not self.find_export(best.step).is_dir():
            raise UserError(
                f"evaluation.keep_best: the model of the best step so far, {best.step}, was not kept in {self.folder}; "
                "go on with keep_best: false, or train the stage from its start"
            )

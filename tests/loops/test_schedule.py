"""Which evaluation is the best, when they end a stage, and what stays on the disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from aurify.errors import UserError
from aurify.loops.interrupt import Interrupt, Interrupted
from aurify.loops.progress import Checkpoints
from aurify.loops.schedule import Schedule


class Exporting:
    """An engine that writes down at which step it was exported, and saved."""

    step = 0

    def export(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "step").write_text(str(self.step))

    def save(self, folder: Path) -> None:
        (folder / "engine").write_text(str(self.step))

    def load(self, folder: Path) -> None:
        self.step = int((folder / "engine").read_text())


def make(folder: Path, values: list[float], **options: Any) -> tuple[Schedule, list[tuple[int, bool]]]:
    told: list[tuple[int, bool]] = []
    given = iter(values)
    known = {"every": 2, "falls": False, "keep_best": True, "stop_after": None, "total": 100, **options}
    return Schedule(
        lambda: (next(given), {}), lambda entry, best: told.append((entry.step, best)), folder=folder / "best", **known
    ), told


def go(checkpoints: Checkpoints, engine: Any, total: int, start: int = 0) -> list[int]:
    done = []
    for step in checkpoints.count_steps(start, total, engine):
        engine.step = step + 1
        checkpoints.after(step + 1, engine, Interrupt())
        done.append(step + 1)
    return done


@pytest.mark.parametrize(
    ("values", "falls", "best"),
    [
        ([0.1, 0.5, 0.5, 0.2], False, 4),  # the first of equal ones
        ([3.0, 2.0, 1.0, 2.0], True, 6),
        ([math.nan, 0.1, math.nan, 0.0], False, 4),
        ([math.nan, math.nan], True, 2),
    ],
)
def test_the_best_is_kept_and_others_are_dropped(tmp_path, values, falls, best):
    schedule, told = make(tmp_path, values, falls=falls)
    checkpoints, engine = Checkpoints(tmp_path / "c", 0, 1, "x", schedule=schedule), Exporting()
    assert go(checkpoints, engine, 2 * len(values)) == list(range(1, 2 * len(values) + 1))
    assert schedule.best.step == best and [entry.name for entry in (tmp_path / "best").iterdir()] == [
        f"step_{best:06d}"
    ]
    schedule.export(engine, tmp_path / "final")
    assert (tmp_path / "final" / "step").read_text() == str(best)
    assert [step for step, better in told if better][-1] == best


def test_the_last_step_is_measured_and_may_be_the_best(tmp_path):
    schedule, told = make(tmp_path, [0.1, 0.2, 0.3])
    go(Checkpoints(tmp_path / "c", 0, 1, "x", schedule=schedule), Exporting(), 5)
    assert told == [(2, True), (4, True), (5, True)]


def test_it_ends_after_so_many_numbers_that_are_not_the_best(tmp_path):
    schedule, _ = make(tmp_path, [0.1, 0.5, 0.4, 0.5, 0.9], stop_after=2)
    assert go(Checkpoints(tmp_path / "c", 0, 1, "x", schedule=schedule), Exporting(), 20)[-1] == 8
    again, _ = make(tmp_path, [], stop_after=2)
    checkpoints = Checkpoints(tmp_path / "c", 0, 1, "x", schedule=again)
    assert checkpoints.restore(Exporting()) == 4, "the best step has a checkpoint"  # type: ignore[arg-type]
    assert [entry.step for entry in again.history] == [2, 4]


def test_a_stage_that_is_over_does_not_begin_again(tmp_path):
    schedule, _ = make(tmp_path, [0.5, 0.4], stop_after=1)
    checkpoints = Checkpoints(tmp_path / "c", 4, 1, "x", schedule=schedule)
    assert go(checkpoints, Exporting(), 20)[-1] == 4
    again, _ = make(tmp_path, [], stop_after=1)
    checkpoints = Checkpoints(tmp_path / "c", 4, 1, "x", schedule=again)
    assert checkpoints.restore(Exporting()) == 4 and go(checkpoints, Exporting(), 20, 4) == []  # type: ignore[arg-type]


def test_an_evaluation_that_is_interrupted_is_made_first_when_the_run_goes_on(tmp_path):
    schedule, _ = make(tmp_path, [])
    engine = Exporting()

    def interrupted() -> Any:
        raise KeyboardInterrupt

    schedule.measure = interrupted
    with pytest.raises(Interrupted):
        go(Checkpoints(tmp_path / "c", 0, 1, "x", schedule=schedule), engine, 4)
    again, told = make(tmp_path, [0.3, 0.2])
    checkpoints = Checkpoints(tmp_path / "c", 0, 1, "x", schedule=again)
    assert checkpoints.restore(engine) == 2 and go(checkpoints, engine, 4, 2) == [3, 4]  # type: ignore[arg-type]
    assert told == [(2, True), (4, False)]


def test_a_best_model_that_was_not_kept_is_told(tmp_path):
    schedule, _ = make(tmp_path, [0.3], keep_best=False)
    go(Checkpoints(tmp_path / "c", 2, 1, "x", schedule=schedule), Exporting(), 2)
    again, _ = make(tmp_path, [])
    with pytest.raises(UserError, match=r"the model of the best step so far, 2, was not kept.*keep_best: false"):
        Checkpoints(tmp_path / "c", 2, 1, "x", schedule=again).restore(Exporting())  # type: ignore[arg-type]

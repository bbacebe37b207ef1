"""Which rows a step takes, and what the loop does to them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurify.algorithms.dpo import DPO
from aurify.algorithms.kto import KTO
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig
from aurify.errors import UserError
from aurify.loops.batches import batch_indices_at, gather_step_batch, num_stage_steps
from aurify.loops.offline import train_offline
from aurify.loops.progress import Checkpoints
from aurify.loops.reference import add_reference_logprobs
from aurify.models.model import ModelConfig, load_model, tiny_model
from aurify.pipeline.recipe import DataOptions, OfflineStage
from aurify.tracking.run_folder import StageFolder
from aurify.types import Datum


def stage(**options: Any) -> OfflineStage:
    return OfflineStage(
        method="sft",
        model=ModelConfig("random:tiny"),
        data=DataOptions(demonstrations=1),
        **{"batch_size": 4} | options,
    )


def pair(number: int) -> tuple[Datum, Datum]:
    prompt, weights = [number + 3, 7, 8], [0.0, 0.0, 0.0, 1.0, 1.0]
    return Datum([*prompt, 20, 2], weights, unit=number), Datum([*prompt, 30, 2], weights, unit=number)


@pytest.mark.parametrize(
    ("num", "epochs", "expected"), [(10, 1, 3), (10, 2, 5), (3, 1, 1), (10, 0.5, 2), (10, 0.01, 1)]
)
def test_whole_epochs_see_every_row_equally_often(num, epochs, expected):
    options = stage(epochs=epochs)
    assert num_stage_steps(options, num) == expected
    seen = Counter(index for step in range(expected) for index in batch_indices_at(step, options, num, seed=0))
    assert sum(seen.values()) == max(1, round(epochs * num))
    assert max(seen.values()) - (min(seen.values()) if len(seen) == num else 0) <= 1


def test_steps_go_on_into_the_next_epoch_in_another_order():
    options = stage(steps=10)
    order = [index for step in range(10) for index in batch_indices_at(step, options, 10, seed=0)]
    epochs = [order[begin : begin + 10] for begin in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != [index for step in range(10) for index in batch_indices_at(step, options, 10, seed=1)]


def test_a_pair_that_stands_twice_in_a_batch_is_two_units():
    batch = gather_step_batch([pair(0), pair(1)], [0, 1, 0])
    assert [datum.unit for datum in batch] == [0, 0, 1, 1, 2, 2]
    assert batch[0].tokens == batch[4].tokens


class Events:
    def event(self, text: str) -> None:
        assert "2 rows" in text


def test_the_reference_is_the_model_before_training(dtype):
    engine = Engine(load_model(ModelConfig("random:tiny", dtype=dtype)))
    units = [pair(number) for number in range(3)]
    known = add_reference_logprobs(engine, units, [[0, 2], [2, 0]], Events())  # type: ignore[arg-type]
    assert known[1] == units[1], "not used by any step: not computed"
    before = [pair[0].ref_logprobs for pair in (known[0], known[2])]
    engine.forward_backward([*known[0], *known[2]], DPO())
    engine.optim_step(1e-2)
    now = engine.logprobs([known[0][0], known[2][0]])
    assert before[0] is not None and before[0][3:] != now[0][3:]
    assert engine.reference_body is None, "no second model for it"


class Steps:
    """Takes down what a stage reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events, self.metrics = StageFolder(folder), [], []  # type: ignore[var-annotated]

    def event(self, text: str) -> None:
        self.events.append(text)

    def start(self, total: int, start: int) -> None:
        assert total > start

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)


def labelled(number: int) -> tuple[Datum]:
    """Desirable answers end in token 20, undesirable ones in 30."""
    label = 1.0 if number % 2 else -1.0
    return (Datum([number + 3, 7, 20 if label > 0 else 30, 2], [0.0, 0.0, 1.0, 1.0], label=label),)


def train_kto(folder: Path, steps: int, dtype: str) -> Steps:
    tracker = Steps(folder)
    options = replace(stage(steps=10), method="kto", optim=OptimConfig(lr=1e-2))
    engine = Engine(load_model(ModelConfig("random:tiny", dtype=dtype)))
    checkpoints = Checkpoints(folder / "checkpoints", every=1, keep=1, identity="x")
    try:
        with stopped_after(tracker, steps):
            train_offline(
                engine, KTO(), [labelled(k) for k in range(8)], options, seed=0, tracker=tracker,  # type: ignore[arg-type]
                checkpoints=checkpoints,
            )  # fmt: skip
    except Killed:
        pass
    return tracker


class Killed(Exception):
    pass


@contextmanager
def stopped_after(tracker: Steps, steps: int) -> Iterator[None]:
    """The process dies when it has reported so many steps, before it saves the last one."""
    record = tracker.step

    def step(number: int, metrics: dict[str, float]) -> None:
        record(number, metrics)
        if len(tracker.metrics) == steps:
            raise Killed

    tracker.step = step  # type: ignore[method-assign]
    yield


def numbers(tracker: Steps) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in tracker.metrics]


def test_kto_learns_and_measures_its_divergence(tmp_path, dtype):
    """All weights are trained: the reference is a frozen copy, made before the first step. At the first step the
    policy is the reference, so the divergence is 0; later it is not."""
    whole = train_kto(tmp_path / "whole", 99, dtype)
    first, last = whole.metrics[0], whole.metrics[-1]
    assert len(whole.metrics) == 10
    assert first["loss/divergence"] == 0 and first["loss"] == pytest.approx(0.5)
    assert last["loss"] < 0.45 and last["reward/margin"] > 0.1
    assert max(row["loss/divergence"] for row in whole.metrics) > 0.01


def test_a_resumed_stage_reads_the_reference_and_goes_on_exactly(tmp_path, dtype):
    whole = train_kto(tmp_path / "whole", 99, dtype)
    first, second = train_kto(tmp_path / "resumed", 4, dtype), train_kto(tmp_path / "resumed", 99, dtype)
    assert "read from" not in "".join(first.events) and "read from" in "".join(second.events)
    assert numbers(first)[:3] + numbers(second) == numbers(whole)


@pytest.mark.parametrize(("options", "num"), [({"batch_size": 1, "steps": 3}, 4), ({"epochs": 1}, 9)])
def test_a_step_of_one_row_is_refused_before_the_first_step(tmp_path, options, num):
    """T15, and not in the last step of a long stage: nine rows in steps of four leave one."""
    tracker = Steps(tmp_path)
    with pytest.raises(UserError, match=r"batch_size: .* a step of this stage has one row"):
        train_offline(
            Engine(tiny_model()), KTO(), [labelled(k) for k in range(num)], stage(**options), seed=0,
            tracker=tracker, checkpoints=None,  # type: ignore[arg-type]
        )  # fmt: skip
    assert not tracker.metrics


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None])
def test_the_first_margin_is_exactly_0(dtype, lora, tmp_path):
    """Policy and reference take the same path through the same rows. Pairs of unlike lengths, more than one batch, and
    an epoch that begins in the middle of a step, so that a batch also holds pairs that have been seen."""
    generator = random.Random(0)

    def answer(number: int, k: int) -> Datum:
        prompt = [generator.randrange(3, 250) for _ in range(5 + number)]
        tokens = [*prompt, *(generator.randrange(3, 250) for _ in range(20 + 7 * k))]
        return Datum(tokens, [0.0] * len(prompt) + [1.0] * (len(tokens) - len(prompt)), unit=number)

    units = [(answer(number, 0), answer(number, 1)) for number in range(6)]
    tracker = Steps(tmp_path)
    options = replace(stage(steps=4), method="dpo", optim=OptimConfig(lr=1e-9))  # the policy stays the reference
    engine = Engine(load_model(ModelConfig("random:tiny", dtype=dtype)), lora=lora)
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0, keep=1, identity="x")
    train_offline(engine, DPO(), units, options, seed=0, tracker=tracker, checkpoints=checkpoints)  # type: ignore[arg-type]
    first = tracker.metrics[0]
    assert first["reward/margin"] == first["reward/chosen"] == first["reward/rejected"] == 0
    assert first["loss"] == pytest.approx(math.log(2)) and len(tracker.metrics) == 4

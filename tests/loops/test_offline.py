"""Which rows a step takes, and what the loop does to them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aurify.algorithms.dpo import DPO
from aurify.engine.engine import Engine
from aurify.engine.model import ModelConfig, tiny_model
from aurify.loops.offline import batch_of, indices_at, num_steps, with_reference
from aurify.loops.recipe import DataOptions, OfflineStage
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
    assert num_steps(options, num) == expected
    seen = Counter(index for step in range(expected) for index in indices_at(step, options, num, seed=0))
    assert sum(seen.values()) == max(1, round(epochs * num))
    assert max(seen.values()) - (min(seen.values()) if len(seen) == num else 0) <= 1


def test_steps_go_on_into_the_next_epoch_in_another_order():
    options = stage(steps=10)
    order = [index for step in range(10) for index in indices_at(step, options, 10, seed=0)]
    epochs = [order[begin : begin + 10] for begin in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order != [index for step in range(10) for index in indices_at(step, options, 10, seed=1)]


def test_a_pair_that_stands_twice_in_a_batch_is_two_units():
    batch = batch_of([pair(0), pair(1)], [0, 1, 0])
    assert [datum.unit for datum in batch] == [0, 0, 1, 1, 2, 2]
    assert batch[0].tokens == batch[4].tokens


class Events:
    def event(self, text: str) -> None:
        assert "2 rows" in text


def test_the_reference_is_the_model_before_training():
    engine = Engine(tiny_model())
    units = [pair(number) for number in range(3)]
    known = with_reference(engine, units, {0, 2}, Events())  # type: ignore[arg-type]
    assert known[1] == units[1], "not used by any step: not computed"
    before = [pair[0].ref_logprobs for pair in (known[0], known[2])]
    engine.forward_backward([*known[0], *known[2]], DPO())
    engine.optim_step(1e-2)
    now = engine.logprobs([known[0][0], known[2][0]])
    assert before[0] is not None and before[0][3:] != now[0][3:]
    assert engine.reference_body is None, "no second model for it"

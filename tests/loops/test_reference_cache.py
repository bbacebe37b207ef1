"""Log-probs of the reference are computed once for a model and its data, and for nothing else are they reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aurify.algorithms.dpo import DPO
from aurify.algorithms.sft import SFT
from aurify.data.encode import Unit
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.loops import reference
from aurify.loops.reference import add_reference_logprobs
from aurify.models.model import LoadedModel, ModelConfig, load_model, tiny_model
from aurify.types import Datum

BATCHES = [[0, 2], [2, 0]]


class Events:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, text: str) -> None:
        self.texts.append(text)


class Counting(Engine):
    """An engine that counts what it is asked to compute."""

    computed = 0

    def logprobs(self, data: Any, **options: Any) -> list[list[float]]:
        self.computed += len(data)
        return super().logprobs(data, **options)


def units() -> list[Unit]:
    prompts = [[number + 3, 7, 8] for number in range(3)]
    weights = [0.0, 0.0, 0.0, 1.0, 0.5]
    return [tuple(Datum([*prompt, k, 2], weights, unit=0) for k in (20, 30)) for prompt in prompts]


def known(path: Path, engine: Counting, rows: list[Unit]) -> tuple[list[Unit], str]:
    events = Events()
    return add_reference_logprobs(engine, rows, BATCHES, events, path), "\n".join(events.texts)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "stage" / reference.FILE


def test_the_second_time_they_are_read(path):
    first, said = known(path, Counting(tiny_model()), units())
    assert "reference log-probs of 2 rows" in said and "read" not in said
    engine = Counting(tiny_model())
    second, said = known(path, engine, units())
    assert second == first, "bit for bit"
    assert engine.computed == 0 and "read from" in said
    assert [unit[0].ref_logprobs is None for unit in second] == [False, True, False]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def changed_weights() -> Counting:
    model = tiny_model()
    with torch.no_grad():
        model.module.get_input_embeddings().weight[5, 3] += 1e-3
    return Counting(model)


def other_name() -> Counting:
    model = tiny_model()
    model.name = "another"
    return Counting(model)


@pytest.mark.parametrize("make", [changed_weights, other_name])
def test_another_model_is_refused(path, make):
    before, _ = known(path, Counting(tiny_model()), units())
    engine = make()
    after, said = known(path, engine, units())
    assert "refused: it belongs to another model" in said
    assert engine.computed == 4
    again, said = known(path, make(), units())
    assert again == after and "read from" in said
    assert (after != before) == (make is changed_weights)


def loaded(name: str, dtype: str) -> LoadedModel:
    return load_model(ModelConfig(name, dtype=dtype))


def test_a_fresh_adapter_has_the_same_reference(path, dtype):
    """Switched off it is the base model, so the log-probs are the same."""
    known(path, Counting(loaded("random:tiny", dtype)), units())
    engine = Counting(loaded("random:tiny", dtype), lora=LoraConfig(rank=2))
    known(path, engine, units())
    assert engine.computed == 0


def test_an_adapter_to_go_on_with_is_part_of_the_reference(path, tmp_path, dtype):
    config = LoraConfig(rank=2)
    first = Counting(loaded("random:tiny", dtype), lora=config)
    known(path, first, units())
    first.forward_backward([datum for unit in units()[:1] for datum in unit], SFT())
    first.optim_step(1e-2)
    first.export(tmp_path / "adapter")
    values = []
    for computed in (4, 0):
        engine = Counting(loaded(str(tmp_path / "adapter"), dtype), lora=config)
        rows, said = known(path, engine, units())
        values.append(rows)
        assert engine.computed == computed and ("refused" in said) == (computed == 4)
    assert values[0] == values[1]


def other_token(rows: list[Unit]) -> list[Unit]:
    return [rows[0], rows[1], (replace(rows[2][0], tokens=[5, 7, 8, 21, 2]), rows[2][1])]


def other_weight(rows: list[Unit]) -> list[Unit]:
    return [(replace(rows[0][0], weights=[0.0, 0.0, 0.0, 1.0, 0.25]), rows[0][1]), *rows[1:]]


def other_order(rows: list[Unit]) -> list[Unit]:
    return rows[::-1]


@pytest.mark.parametrize("change", [other_token, other_weight, other_order])
def test_other_data_are_refused(path, change):
    known(path, Counting(tiny_model()), units())
    engine = Counting(tiny_model())
    _, said = known(path, engine, change(units()))
    assert "refused: it belongs to other data" in said
    assert engine.computed == 4


def test_a_row_that_no_step_uses_may_change(path):
    known(path, Counting(tiny_model()), units())
    engine, rows = Counting(tiny_model()), units()
    known(path, engine, [rows[0], rows[0], rows[2]])
    assert engine.computed == 0


def test_a_damaged_file_is_refused(path):
    first, _ = known(path, Counting(tiny_model()), units())
    path.write_bytes(path.read_bytes()[:50])
    again, said = known(path, Counting(tiny_model()), units())
    assert "refused: it cannot be read" in said and again == first


def test_training_with_read_ones_is_training_with_computed_ones(path):
    losses = []
    for _ in range(2):
        engine = Counting(tiny_model())
        rows, _ = known(path, engine, units())
        data = [replace(datum, unit=k) for k in BATCHES[0] for datum in rows[k]]
        history = []
        for _ in range(2):
            history.append(engine.forward_backward(data, DPO())["loss"])
            engine.optim_step(1e-3)
        losses.append(history)
    assert losses[0] == losses[1]

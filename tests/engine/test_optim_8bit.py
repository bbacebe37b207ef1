"""AdamW of bitsandbytes: it trains as ours does, with moments in 8 bits, and goes on from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.optim import OptimConfig
from aurify.errors import UserError
from aurify.models.model import ModelConfig, load_model
from aurify.types import Datum

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'aurify[quantize]'")
TOKENS = list(range(20, 60))
DATA = [Datum(TOKENS, [0.0] + [1.0] * (len(TOKENS) - 1)), Datum(TOKENS[::-1], [0.0] + [1.0] * (len(TOKENS) - 1))]


def open_engine(kind, dtype):
    return Engine(load_model(ModelConfig("random:tiny", dtype=dtype)), optim=OptimConfig(kind=kind, weight_decay=0.01))


def train(engine, steps):
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward(DATA, SFT())["loss"])
        engine.optim_step(3e-3)
    return losses


@pytest.mark.parametrize(("kind", "near"), [("adamw_8bit", 0.1), ("paged_adamw", 1e-3), ("paged_adamw_8bit", 0.1)])
def test_it_learns_as_adamw_does(kind, near, dtype):
    expected, found = train(open_engine("adamw", dtype), 12), train(open_engine(kind, dtype), 12)
    assert found[-1] < found[0] - 1.5
    assert found[0] == expected[0]
    assert found == pytest.approx(expected, abs=near if dtype == "float32" else 2 * near + 0.05)


def test_moments_have_8_bits_and_a_scale_for_256(dtype):
    """Of matrices from 4,096 numbers on; in 32 bits they would have four bytes each."""
    engine = open_engine("adamw_8bit", dtype)
    train(engine, 1)
    num_small = 0
    for master in engine.optimizer.masters:
        state = engine.optimizer.adamw.state[master]
        found = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2") if name in state)
        small = master.numel() < 4096
        num_small += small
        assert found == (8 * master.numel() if small else 2 * master.numel() + 8 * -(-master.numel() // 256))
    assert 0 < num_small < len(engine.optimizer.masters)


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_resume_gives_the_same_bits(kind, dtype, tmp_path):
    straight = open_engine(kind, dtype)
    losses = train(straight, 6)
    first = open_engine(kind, dtype)
    train(first, 3)
    first.save(tmp_path)
    resumed = open_engine(kind, dtype)
    resumed.load(tmp_path)
    assert train(resumed, 3) == losses[3:]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(straight.weights(), resumed.weights(), strict=True))


def test_moments_of_another_kind_are_refused(tmp_path):
    engine = open_engine("adamw", "float32")
    train(engine, 1)
    engine.save(tmp_path)
    with pytest.raises(UserError, match=r"optim.kind: 'adamw_8bit' cannot go on with the moments of 'adamw'"):
        open_engine("adamw_8bit", "float32").load(tmp_path)


def test_on_a_cpu_nothing_is_paged_and_that_is_said(caplog):
    open_engine("paged_adamw_8bit", "float32")
    assert "paged_adamw_8bit has nothing to page on a CPU" in caplog.text

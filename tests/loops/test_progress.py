"""Checkpoints of a stage, seeds, and what a signal does."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import numpy as np
import pytest
import torch

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.loops.interrupt import MAX_IGNORED, Interrupt, Interrupted, interrupt_on_sigterm, run_loop_async
from aurify.loops.progress import Checkpoints, derive_seed, fingerprint_items, seed_everything
from aurify.models.model import tiny_model
from aurify.types import Datum

DATA = [Datum([5, 6, 7, 8], [0.0, 1.0, 1.0, 1.0])]


def train(engine: Engine) -> None:
    engine.forward_backward(DATA, SFT())
    engine.optim_step(1e-3)


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_checkpoint_brings_back_weights_and_random_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=2, keep=1, identity="a")
    engine, other = Engine(tiny_model()), Engine(tiny_model())
    assert checkpoints.restore(other) == 0
    seed_everything(3)
    for step in (1, 2):
        train(engine)
        checkpoints.after(step, engine, Interrupt())
    expected = drawn()
    train(engine)
    assert checkpoints.restore(other) == 2 and drawn() == expected
    train(other)
    assert other.version == engine.version == 3
    assert all(ours.equal(theirs) for (_, ours), (_, theirs) in zip(engine.weights(), other.weights(), strict=True))


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    engine = Engine(tiny_model())
    Checkpoints(tmp_path, every=1, keep=1, identity="a").save(1, engine)
    with pytest.raises(UserError, match="other options or other data"):
        Checkpoints(tmp_path, every=1, keep=1, identity="b").restore(engine)


def test_seeds_and_fingerprints_are_the_same_in_every_process():
    assert derive_seed(0, "sft") == 40962508039363143
    assert derive_seed(0, "sft") != derive_seed(1, "sft") != derive_seed("0/s", "ft")
    assert (
        fingerprint_items([1, "a", (2.5, None)])
        == fingerprint_items([1, "a", (2.5, None)])
        != fingerprint_items([1, "a", (2.5, 0)])
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_step_end_and_the_second_does_not(number, tmp_path, capsys):
    checkpoints, engine = Checkpoints(tmp_path, every=0, keep=1, identity="a"), Engine(tiny_model())
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with pytest.raises(Interrupted, match="after step 5"), Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        train(engine)  # goes on
        checkpoints.after(5, engine, interrupt)
    assert "after this step" in capsys.readouterr().out
    assert checkpoints.restore(engine) == 5
    with pytest.raises(KeyboardInterrupt), Interrupt():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        pytest.fail("the second one stops at once")
    assert handlers == [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]


def test_work_that_changes_nothing_is_cancelled_by_the_first_signal():
    cleaned = []

    async def work(number: signal.Signals | None) -> str:
        try:
            if number is not None:
                os.kill(os.getpid(), number)
                await asyncio.sleep(60)
            return "done"
        finally:
            cleaned.append(number)

    with Interrupt() as interrupt:
        assert asyncio.run(interrupt.until_stopped(work(None))) == "done"
        assert asyncio.run(interrupt.until_stopped(work(signal.SIGTERM))) is None
        assert asyncio.run(interrupt.until_stopped(work(None))) is None, "a loop that was asked to stop begins nothing"
    assert cleaned == [None, signal.SIGTERM]
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            run_loop_async(work(number))
    assert run_loop_async(work(None)) == "done" and len(cleaned) == 5


def test_a_second_signal_does_not_break_into_work_that_is_being_cancelled():
    """It hung an evaluation: the exception ended the event loop before the requests in flight were told."""
    ended = []

    async def work() -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
            return "done"
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
            ended.append("in order")

    with pytest.raises(KeyboardInterrupt):
        run_loop_async(work())
    assert ended == ["in order"]


def test_work_that_does_not_end_when_it_is_cancelled_is_left_after_some_signals():
    async def work() -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
            return "done"
        finally:
            for _ in range(MAX_IGNORED + 1):
                os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        run_loop_async(work())


def test_a_termination_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interrupt_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it did not stop")

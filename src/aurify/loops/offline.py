"""The loop over static data: supervised fine-tuning, reward models, preferences.

A unit is what a batch counts: one row, or the two completions of a preference pair. Epochs are shuffled by the seed
alone, so the rows of a step are a function of its number, and the number of finished steps is all that a resumed run
needs to know.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from aurify.engine.optim import lr_at
from aurify.loops.interrupt import Interrupt
from aurify.loops.progress import Checkpoints, derive_seed
from aurify.loops.recipe import OfflineStage
from aurify.types import Algorithm, Datum

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.tracking.tracker import StageTracker

Unit = tuple[Datum, ...]

REFERENCE_CHUNK = 64  # units in one call for reference log-probs: a sign of life between two calls


def num_steps(stage: OfflineStage, num_units: int) -> int:
    """Optimiser steps of the stage. The last step of whole epochs may be smaller: no row is seen once more than
    another."""
    if stage.steps is not None:
        return stage.steps
    return math.ceil(num_rows(stage, num_units) / stage.batch_size)


def num_rows(stage: OfflineStage, num_units: int) -> int:
    if stage.steps is not None:
        return stage.steps * stage.batch_size
    return max(1, round((stage.epochs or 1.0) * num_units))


@lru_cache(maxsize=4)
def epoch_order(num_units: int, seed: int, epoch: int) -> tuple[int, ...]:
    indices = list(range(num_units))
    random.Random(derive_seed(seed, "epoch", epoch)).shuffle(indices)
    return tuple(indices)


def indices_at(step: int, stage: OfflineStage, num_units: int, seed: int) -> list[int]:
    """The units of step 0, 1, ...: epochs one after the other, each in its own order."""
    begin = step * stage.batch_size
    end = min(begin + stage.batch_size, num_rows(stage, num_units))
    return [epoch_order(num_units, seed, place // num_units)[place % num_units] for place in range(begin, end)]


def batch_of(units: Sequence[Unit], indices: Sequence[int]) -> list[Datum]:
    """The data of one step. Units are numbered anew: a small data set may hold one twice in a batch."""
    return [
        replace(datum, unit=place) if len(units[index]) > 1 else datum
        for place, index in enumerate(indices)
        for datum in units[index]
    ]


def with_reference(engine: Engine, units: Sequence[Unit], used: set[int], tracker: StageTracker) -> list[Unit]:
    """Adds the log-probs of the reference, once, to the units that the stage will see. To be called before the first
    step and before a checkpoint is loaded: then the engine needs no second copy of the model."""
    result, chosen = list(units), sorted(used)
    tracker.event(f"reference log-probs of {len(chosen)} rows")
    for begin in range(0, len(chosen), REFERENCE_CHUNK):
        part = chosen[begin : begin + REFERENCE_CHUNK]
        flat = [datum for index in part for datum in units[index]]
        known = iter(engine.logprobs(flat, reference=True))
        for index in part:
            result[index] = tuple(replace(datum, ref_logprobs=next(known)) for datum in units[index])
    return result


def train_offline(
    engine: Engine,
    algorithm: Algorithm,
    units: Sequence[Unit],
    stage: OfflineStage,
    *,
    seed: int,
    tracker: StageTracker,
    checkpoints: Checkpoints,
) -> int:
    """Trains from the newest checkpoint, or from the start, to the end. Returns the number of steps. Raises
    `Interrupted` after a checkpoint when asked to stop."""
    total = num_steps(stage, len(units))
    if "ref_logprobs" in algorithm.needs:
        used = {index for step in range(total) for index in indices_at(step, stage, len(units), seed)}
        units = with_reference(engine, units, used, tracker)
    start = checkpoints.restore(engine)
    tracker.start(total, start)
    with Interrupt() as interrupt:
        for step in range(start, total):
            begin = time.perf_counter()
            batch = batch_of(units, indices_at(step, stage, len(units), seed))
            metrics = engine.forward_backward(batch, algorithm)
            metrics |= engine.optim_step(lr_at(stage.optim, step, total))
            seconds = time.perf_counter() - begin
            num_tokens = sum(len(datum.tokens) for datum in batch)
            metrics |= {
                "ledger/rows": float(len(batch)),
                "ledger/tokens": float(num_tokens),
                "ledger/epoch": step * stage.batch_size / len(units),
                "time/step": seconds,
                "time/tokens_per_second": num_tokens / seconds,
            }
            tracker.step(step + 1, metrics)
            checkpoints.after(step + 1, engine, interrupt)
    return total

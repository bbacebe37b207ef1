"""The loop over static data: supervised fine-tuning, reward models, preferences.

A unit is what a batch counts: one row, or the two completions of a preference pair. Epochs are shuffled by the seed
alone, so the rows of a step are a function of its number, and the number of finished steps is all that a resumed run
needs to know.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from aurify.data.mixing import Mixture
from aurify.engine.optim import lr_at
from aurify.errors import UserError
from aurify.loops import reference_cache
from aurify.loops.interrupt import Interrupt
from aurify.loops.progress import Checkpoints, derive_seed
from aurify.pipeline.recipe import OfflineStage
from aurify.types import Algorithm, Datum, prepared

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.tracking.tracker import StageTracker

Unit = tuple[Datum, ...]


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


def indices_at(step: int, stage: OfflineStage, num_units: int, seed: int, mixture: Mixture | None = None) -> list[int]:
    """The units of step 0, 1, ...: epochs one after the other, each in its own order, or those of a mixture."""
    begin = step * stage.batch_size
    end = min(begin + stage.batch_size, num_rows(stage, num_units))
    if mixture is not None:
        return [mixture.at(position) for position in range(begin, end)]
    return [epoch_order(num_units, seed, k // num_units)[k % num_units] for k in range(begin, end)]


def gather_batch(units: Sequence[Unit], indices: Sequence[int]) -> list[Datum]:
    """The data of one step. Units are numbered anew: a small data set may hold one twice in a batch."""
    return [
        replace(datum, unit=position) if len(units[index]) > 1 else datum
        for position, index in enumerate(indices)
        for datum in units[index]
    ]


def add_reference(
    engine: Engine,
    units: Sequence[Unit],
    batches: Iterable[Sequence[int]],
    tracker: StageTracker,
    cache: Path | None = None,
) -> list[Unit]:
    """Adds the log-probs of the reference, once, to the units that the stage will see. Call it before the first step
    and before a checkpoint is loaded: then the engine needs no second copy of the model.

    batches: the units of each step, in turn. A unit is computed together with those of the first step that sees it, in
    the same rows as the policy is then: so both are rounded alike, and the first margins are 0.
    cache: the file that keeps them. One of another model or of other data is refused, and written anew."""
    first = first_uses(batches)
    chosen = [index for _, new in first for index in new]
    flat = [datum for index in chosen for datum in units[index]]
    known, model = None, ""
    if cache is not None:
        model = reference_cache.model_fingerprint(engine)
        known, refused = reference_cache.load_reference(cache, model, flat)
        if refused:
            tracker.event(f"{cache}: refused: {refused}")
    if known is None:
        tracker.event(f"reference log-probs of {len(chosen)} rows")
        known = [values for batch, new in first for values in reference_logprobs(engine, units, batch, new)]
        if cache is not None:
            reference_cache.save_reference(cache, model, flat, known)
    else:
        tracker.event(f"reference log-probs of {len(chosen)} rows: read from {cache}")
    result, rest = list(units), iter(known)
    for index in chosen:
        result[index] = tuple(replace(datum, ref_logprobs=next(rest)) for datum in units[index])
    return result


def first_uses(batches: Iterable[Sequence[int]]) -> list[tuple[Sequence[int], list[int]]]:
    """The batches that bring units for the first time, and which these are."""
    seen: set[int] = set()
    result = []
    for batch in batches:
        if new := [index for index in dict.fromkeys(batch) if index not in seen]:
            result.append((batch, new))
            seen |= set(new)
    return result


def reference_logprobs(
    engine: Engine, units: Sequence[Unit], batch: Sequence[int], new: Sequence[int]
) -> list[list[float]]:
    """Of the data of the new units, in the order of `new`."""
    known = iter(engine.logprobs(gather_batch(units, batch), reference=True))
    by_unit = {index: [next(known) for _ in units[index]] for index in batch}
    return [values for index in new for values in by_unit[index]]


def check_batch_size(stage: OfflineStage, num_units: int) -> None:
    """A method that compares the rows of a step needs two in each. This is seen before the first step, not in the
    last."""
    rows = num_rows(stage, num_units)
    if min(stage.batch_size, rows) < 2 or rows % stage.batch_size == 1:
        raise UserError(
            f"batch_size: {stage.method} compares the rows of a step with each other, and a step of this stage has one "
            f"row ({rows} rows in steps of {stage.batch_size}); set another batch_size, or steps instead of epochs"
        )


def train_offline(
    engine: Engine,
    algorithm: Algorithm,
    units: Sequence[Unit],
    stage: OfflineStage,
    *,
    seed: int,
    tracker: StageTracker,
    checkpoints: Checkpoints,
    mixture: Mixture | None = None,
) -> int:
    """Trains from the newest checkpoint, or from the start, to the end. Returns the number of steps. Raises
    `Interrupted` after a checkpoint when asked to stop."""
    num_units = len(units) if mixture is None else mixture.num_rows  # of an epoch
    total = num_steps(stage, num_units)
    if "ref_logprobs" in algorithm.needs:
        batches = (indices_at(step, stage, num_units, seed, mixture) for step in range(total))
        cache = tracker.folder.path / reference_cache.FILE
        units = add_reference(engine, units, batches, tracker, cache)
    if "reference" in algorithm.needs:
        check_batch_size(stage, num_units)
        engine.keep_reference()
    start = checkpoints.restore(engine)
    tracker.start(total, start)
    with Interrupt() as interrupt:
        for step in range(start, total):
            begin = time.perf_counter()
            batch = gather_batch(units, indices_at(step, stage, num_units, seed, mixture))
            metrics = engine.forward_backward(prepared(algorithm, batch, engine), algorithm)
            metrics |= engine.optim_step(lr_at(stage.optim, step, total))
            seconds = time.perf_counter() - begin
            num_tokens = sum(len(datum.tokens) for datum in batch)
            metrics |= {
                "ledger/rows": float(len(batch)),
                "ledger/tokens": float(num_tokens),
                "ledger/epoch": step * stage.batch_size / num_units,
                "time/step": seconds,
                "time/tokens_per_second": num_tokens / seconds,
            }
            tracker.step(step + 1, metrics)
            checkpoints.after(step + 1, engine, interrupt)
    return total

"""The loop over static data: supervised fine-tuning, reward models, preferences. A unit is what a batch counts: one
row, or the two completions of a preference pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.data.encode import Unit
from aurify.data.mixing import Mixture
from aurify.engine.optim import lr_at
from aurify.errors import UserError
from aurify.loops.batches import batch_indices_at, gather_step_batch, num_stage_rows, num_stage_steps
from aurify.loops.interrupt import Interrupt
from aurify.loops.progress import Checkpoints
from aurify.loops.reference import FILE, add_reference_logprobs
from aurify.pipeline.recipe import OfflineStage
from aurify.types import Algorithm, prepared

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.tracking.tracker import StageTracker


def check_batch_size(stage: OfflineStage, num_units: int) -> None:
    """A method that compares the rows of a step needs two in each. This is seen before the first step, not in the
    last."""
    rows = num_stage_rows(stage, num_units)
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
) -> None:
    """Trains from the newest checkpoint, or from the start, to the end. Raises `Interrupted` after a checkpoint when
    asked to stop."""
    num_units = len(units) if mixture is None else mixture.num_rows  # of an epoch
    total = num_stage_steps(stage, num_units)
    if "ref_logprobs" in algorithm.needs:
        batches = (batch_indices_at(step, stage, num_units, seed, mixture) for step in range(total))
        units = add_reference_logprobs(engine, units, batches, tracker, tracker.folder.path / FILE)
    if "reference" in algorithm.needs:
        check_batch_size(stage, num_units)
        engine.keep_reference()
    start = checkpoints.restore(engine, total)
    tracker.start(total, start)
    with Interrupt() as interrupt:
        for step in checkpoints.count_steps(start, total, engine):
            begin = time.perf_counter()
            batch = gather_step_batch(units, batch_indices_at(step, stage, num_units, seed, mixture))
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

"""Which rows a step of the offline loop takes. Epochs are shuffled by the seed alone, so that the rows of a step follow
from its number, and a resumed run needs to know nothing but how many steps are done."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from aurify.data.encode import Unit
from aurify.data.mixing import Mixture
from aurify.loops.progress import derive_seed
from aurify.pipeline.recipe import OfflineStage
from aurify.types import Datum


def num_stage_steps(stage: OfflineStage, num_units: int) -> int:
    """Optimiser steps of the stage. The last step of whole epochs may be smaller: no row is seen once more than
    another."""
    if stage.steps is not None:
        return stage.steps
    return math.ceil(num_stage_rows(stage, num_units) / stage.batch_size)


def num_stage_rows(stage: OfflineStage, num_units: int) -> int:
    if stage.steps is not None:
        return stage.steps * stage.batch_size
    return max(1, round((stage.epochs or 1.0) * num_units))


@lru_cache(maxsize=4)
def epoch_order(num_units: int, seed: int, epoch: int) -> tuple[int, ...]:
    indices = list(range(num_units))
    random.Random(derive_seed(seed, "epoch", epoch)).shuffle(indices)
    return tuple(indices)


def batch_indices_at(
    step: int, stage: OfflineStage, num_units: int, seed: int, mixture: Mixture | None = None
) -> list[int]:
    """The units of step 0, 1, ...: epochs one after the other, each in its own order, or those of a mixture."""
    begin = step * stage.batch_size
    end = min(begin + stage.batch_size, num_stage_rows(stage, num_units))
    if mixture is not None:
        return [mixture.at(position) for position in range(begin, end)]
    return [epoch_order(num_units, seed, k // num_units)[k % num_units] for k in range(begin, end)]


def gather_step_batch(units: Sequence[Unit], indices: Sequence[int]) -> list[Datum]:
    """The data of one step. Units are numbered anew: a small data set may hold one twice in a batch."""
    return [
        replace(datum, unit=position) if len(units[index]) > 1 else datum
        for position, index in enumerate(indices)
        for datum in units[index]
    ]

"""The optimiser steps of one round: the log-probs that they need, and how its data are shared out among them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aurify.algorithms.hooks import hook
from aurify.types import Datum, Metrics, OnlineAlgorithm, prepared

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.pipeline.recipe import OnlineStage


def add_logprobs(
    engine: Engine, algorithm: OnlineAlgorithm, groups: Sequence[Sequence[Datum]], stage: OnlineStage
) -> list[list[Datum]]:
    """Adds the log-probs that the algorithm, or the way the stage trains, needs beside those of the policy of now."""
    flat = [datum for group in groups for datum in group]
    temperature = stage.sampling.temperature
    if "ref_logprobs" in algorithm.needs:
        known = engine.logprobs(flat, reference=True, temperature=temperature)
        flat = [replace(datum, ref_logprobs=values) for datum, values in zip(flat, known, strict=True)]
    if "teacher_logprobs" in algorithm.needs:
        assert engine.teacher is not None
        known = engine.teacher.logprobs(flat, temperature=temperature)
        flat = [replace(datum, ref_logprobs=values) for datum, values in zip(flat, known, strict=True)]
    several = stage.num_minibatches > 1 or stage.num_epochs > 1  # else the policy of the update is that of the rollouts
    if several or stage.replay is not None or "old_logprobs" in algorithm.needs:
        flat = with_old_logprobs(engine, flat, temperature, guided=hook(algorithm, "asks_guide_ratio"))
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in groups]


def with_old_logprobs(engine: Engine, data: Sequence[Datum], temperature: float, *, guided: bool = True) -> list[Datum]:
    """Adds the trainer's log-probs before the update. A replayed answer keeps its own of the past. A guide's tokens get
    the trainer's too, so that their ratio is the same with one update and with several. guided: False saves the pass
    over whole traces for methods that never look at them, and gives 0."""
    sources = ("policy", "guidance") if guided else ("policy",)
    known = iter(engine.logprobs([datum for datum in data if datum.source in sources], temperature=temperature))
    result = []
    for datum in data:
        values = next(known) if datum.source in sources else datum.logprobs
        assert values is not None
        result.append(replace(datum, old_logprobs=values))
    return result


def minibatches(groups: Sequence[Sequence[Datum]], stage: OnlineStage, seed: int) -> Iterator[list[Datum]]:
    """The data of each optimiser step. Groups stay whole; their order is drawn anew for each epoch."""
    generator = random.Random(seed)
    for _ in range(stage.num_epochs):
        order = list(groups)
        if stage.num_minibatches > 1:
            generator.shuffle(order)
        for part in range(min(stage.num_minibatches, len(order))):
            yield [datum for group in order[part :: stage.num_minibatches] for datum in group]


def update(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    groups: Sequence[Sequence[Datum]],
    stage: OnlineStage,
    *,
    lr: float,
    seed: int,
) -> Metrics:
    """Takes the optimiser steps of a round. Metrics are means over them, ledger entries sums."""
    temperature = stage.sampling.temperature
    results = []
    for batch in minibatches([group for group in groups if group], stage, seed):
        batch = prepared(algorithm, batch, engine, temperature)
        metrics = engine.forward_backward(batch, algorithm, temperature=temperature)
        results.append(metrics | engine.optim_step(lr))
    names = {name for metrics in results for name in metrics}
    return {
        name: sum(metrics.get(name, 0.0) for metrics in results) / (1 if name.startswith("ledger/") else len(results))
        for name in sorted(names)
    }

"""One stage from its plan to a finished model: gather data, measure, train, export, measure again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aurify.engine.engine import Engine
from aurify.engine.optim import OptimConfig
from aurify.environments.player import RolloutOptions
from aurify.errors import UserError
from aurify.files import replace_folder
from aurify.loops.examples import Examples, Units, demonstrate, encode_examples
from aurify.loops.guidance import Guide
from aurify.loops.offline import train_offline
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints, fingerprint, seed_everything
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.pipeline.heldout import describe_split, without_heldout
from aurify.pipeline.measure import choose_measure, measure_after, measure_before
from aurify.pipeline.pairs import gather_pairs
from aurify.pipeline.recipe import OfflineStage, OnlineStage, make_renderer, reference
from aurify.pipeline.start import (
    StageRun,
    announce_engine,
    build_stage_rubric,
    fit_tasks,
    open_engine,
    open_other,
)
from aurify.samplers.open import open_sampler


def run_stage(run: StageRun) -> None:
    """Does all of a stage; what was done before a kill is not done again."""
    began, options = time.perf_counter(), run.stage.options
    run.record(status="running", method=options.method, model=options.model.name, task=options.task)
    for note in run.taskset.notes if run.taskset else ():
        run.tracker.event(note)
    try:
        engine = train_by_sampling(run) if isinstance(options, OnlineStage) else train_on_data(run)
        run.run_folder.record_engine(run.name, engine.describe())
        engine.close()
        for line in run.guard.lines():
            run.tracker.event(line)
    except UserError as error:
        run.tracker.event(f"stopped: {error}")
        raise
    finally:
        run.tracker.finish()
    run.record(status="finished", seconds=round(time.perf_counter() - began, 1))


# ---------------------------------------------------------------------- offline


def train_on_data(run: StageRun) -> Engine:
    stage, algorithm = run.stage.offline, run.stage.algorithm
    examples = gather_examples(run)
    engine = open_engine(run)
    announce_engine(run, engine)
    units = take_units(run, engine, examples)
    report_units(run, units)
    measure = choose_measure(run, engine, [datum for unit in units.heldout for datum in unit])
    measure_before(run, measure)
    trained = ((d.tokens, d.weights, d.label, d.margin) for unit in units.train for d in unit)
    checkpoints = make_checkpoints(run, [len(units.train), *trained])
    seed_everything(run.seed)
    train_offline(
        engine, algorithm, units.train, stage, seed=run.seed, tracker=run.tracker, checkpoints=checkpoints,
        mixture=units.mixture,
    )  # fmt: skip
    export(run, engine)
    measure_after(run, measure)
    return engine


def gather_examples(run: StageRun) -> Examples:
    """What the stage trains on and what it is measured on. Whatever the source is, no example to train on asks a
    question that any stage of the recipe holds out."""
    source = run.stage.offline.data
    if source.parts:
        assert run.stage.examples is not None
        return run.stage.examples
    if source.demonstrations is not None:
        assert run.taskset is not None
        owner, examples = run.stage, demonstrate(run.taskset, source.demonstrations, run.seed)
    else:
        owner = run.plan.stages[reference(source.stage) or run.name]
        examples = gather_pairs(run, owner.name)
    return without_heldout(examples, run.plan.heldout, run.stage, but=[owner.holder])


def take_units(run: StageRun, engine: Engine, examples: Examples) -> Units:
    """The examples in tokens: what the check of the recipe has kept, if it was made for such a model."""
    stage, limits = run.stage, (engine.max_context, engine.vocabulary)
    known, stage.kept = stage.kept, None
    if known is not None and (known.max_context, known.vocabulary) == limits:
        return known.units
    with run.show_waiting(f"{len(examples.train):,} rows are encoded"):
        renderer = make_renderer(stage.options, engine.tokenizer)
        return encode_examples(examples, stage.offline, renderer, limit=limits[0], vocabulary=limits[1], seed=run.seed)


def report_units(run: StageRun, units: Units) -> None:
    for line in units.tally.lines():
        run.tracker.event(line)
    if split := describe_split(run.stage, len(units.train), len(units.heldout)):
        run.tracker.event(split)
    if num_held_out := units.tally.held_out.total():
        run.record(rows_held_out=num_held_out)
        run.tracker.also = lambda: {"ledger/rows_held_out": float(num_held_out)}


# ---------------------------------------------------------------------- online


def train_by_sampling(run: StageRun) -> Engine:
    stage, engine = run.stage.online, open_engine(run)
    announce_engine(run, engine)
    run = fit_tasks(run, engine)
    taskset = run.taskset
    assert taskset is not None
    measure = choose_measure(run, engine)
    measure_before(run, measure)
    judge = open_other(run, stage.reward.model, scalar_head=True) if stage.reward else None
    renderer = make_renderer(stage, engine.tokenizer)
    guide = Guide(stage, renderer, taskset, run.stage.traces) if stage.guidance else None
    if run.stage.traces is not None:
        run.tracker.event(run.stage.traces.report())
    teacher = open_other(run, stage.teacher) if stage.teacher else None
    if teacher is not None:
        engine.follow(teacher)
    rollouts = Rollouts(
        open_sampler(run.stage.options.sampler, engine, seed=run.seed),
        renderer,
        taskset,
        build_stage_rubric(run, judge),
        stage,
        run.seed,
        guide=guide,
        buffer=Buffer(stage.replay, stage.completions_per_prompt) if stage.replay else None,
    )
    checkpoints = make_checkpoints(run, [guide.traces.by_question] if guide and guide.traces else [])
    run.tracker.also = lambda: {"ledger/tasks_held_out": float(run.guard.num)} if run.guard.num else {}
    seed_everything(run.seed)
    train_online(engine, run.stage.algorithm, rollouts, tracker=run.tracker, checkpoints=checkpoints)
    for other in (judge, teacher):
        if other is not None:
            other.close()
    export(run, engine)
    measure_after(run, measure)
    return engine


# ---------------------------------------------------------------------- what it leaves


def make_checkpoints(run: StageRun, items: Iterable[object]) -> Checkpoints:
    """items: what a resumed run must have in common with the first one, beside the seed and the options."""
    stage = run.stage.options
    limits = RolloutOptions(in_rounds=stage.rollouts.in_rounds, history=stage.rollouts.history)
    # what may change when a run goes on; see pipeline/resume.py
    free: dict[str, Any] = {"epochs": None} if isinstance(stage, OfflineStage) else {"samples_every": 0}
    free |= {"checkpoint_every": 0, "keep_checkpoints": 1, "rollouts": limits, "optim": OptimConfig(), "steps": 1}
    same = replace(stage, **free)
    identity = fingerprint([run.seed, same, *items])
    return Checkpoints(run.folder.checkpoints, stage.checkpoint_every, stage.keep_checkpoints, identity)


def export(run: StageRun, engine: Engine) -> None:
    """`final/` is complete or not there."""
    scratch = run.folder.path / ".final.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    engine.export(scratch)
    replace_folder(scratch, run.folder.final)

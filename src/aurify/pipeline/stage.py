"""One stage from its plan to a finished model: gather data, measure, train, export, measure again."""

from __future__ import annotations

import gc
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
from aurify.hardware import return_freed_memory
from aurify.loops.guidance import Guide
from aurify.loops.offline import train_offline
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints, fingerprint_items, seed_everything
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts
from aurify.loops.schedule import Schedule
from aurify.pipeline.card import GIB, choose_memory_card
from aurify.pipeline.examples import Examples, Units, demonstrate_stage_tasks, encode_stage_examples
from aurify.pipeline.heldout import describe_stage_split, drop_heldout_examples
from aurify.pipeline.measure import (
    Measure,
    choose_stage_measure,
    measure_stage_after,
    measure_stage_before,
    open_stage_schedule,
)
from aurify.pipeline.memory import StageMemory, format_memory, plan_stage_memory
from aurify.pipeline.pairs import gather_stage_pairs
from aurify.pipeline.recipe import OfflineStage, OnlineStage, build_stage_renderer, read_stage_reference
from aurify.pipeline.start import (
    StageRun,
    announce_stage_engine,
    build_stage_rubric,
    fit_stage_tasks,
    open_other_stage_engine,
    open_stage_engine,
)
from aurify.samplers.open import open_sampler
from aurify.tracking.machine import begin_peak, read_run_memory


def run_stage(run: StageRun) -> None:
    """Does all of a stage; what was done before a kill is not done again."""
    began, options = time.perf_counter(), run.stage.options
    planned, before = plan_stage_memory(run.plan, run.stage, choose_memory_card(options.model)), begin_stage_peak()
    run.record(status="running", method=options.method, model=options.model.name, task=options.task)
    for note in run.taskset.notes if run.taskset else ():
        run.tracker.event(note)
    try:
        engine = train_stage_by_sampling(run) if isinstance(options, OnlineStage) else train_stage_on_data(run)
        run.run_folder.record_engine(run.name, engine.describe())
        engine.close()
        report_peak(run, planned, before)
        for line in run.guard.lines():
            run.tracker.event(line)
    except UserError as error:
        run.tracker.event(f"stopped: {error}")
        raise
    finally:
        run.tracker.finish()
    run.record(status="finished", seconds=round(time.perf_counter() - began, 1))
    shutil.rmtree(run.folder.best, ignore_errors=True)  # it is in final/ now


def begin_stage_peak() -> float | None:
    """Lets go of what earlier stages left, so that the peak is that of this stage. See `begin_peak`."""
    gc.collect()
    return_freed_memory()
    return begin_peak()


def report_peak(run: StageRun, planned: StageMemory, before: float | None) -> None:
    """before: GiB that were held when the stage began."""
    facts = planned.describe()
    if before is not None:
        facts["measured"] = round((read_run_memory() - before) * GIB)
    run.record(memory=facts)
    told = f"; measured {format_memory(facts['measured'])}" if "measured" in facts else ""
    run.tracker.event(f"memory: planned {format_memory(planned.peak)} ({planned.fullest}){told}")


# ---------------------------------------------------------------------- offline


def train_stage_on_data(run: StageRun) -> Engine:
    stage, algorithm = run.stage.offline, run.stage.algorithm
    examples = gather_stage_examples(run)
    engine = open_stage_engine(run)
    announce_stage_engine(run, engine)
    units = take_stage_units(run, engine, examples)
    report_stage_units(run, units)
    measure = choose_stage_measure(run, engine, [datum for unit in units.heldout for datum in unit])
    measure_stage_before(run, measure)
    trained = ((d.tokens, d.weights, d.label, d.margin) for unit in units.train for d in unit)
    checkpoints = open_stage_checkpoints(run, measure, [len(units.train), *trained])
    seed_everything(run.seed)
    train_offline(
        engine, algorithm, units.train, stage, seed=run.seed, tracker=run.tracker, checkpoints=checkpoints,
        mixture=units.mixture,
    )  # fmt: skip
    export_stage(run, engine, checkpoints.schedule)
    measure_stage_after(run, measure, checkpoints.schedule)
    return engine


def gather_stage_examples(run: StageRun) -> Examples:
    """What the stage trains on and what it is measured on. Whatever the source is, no example to train on asks a
    question that any stage of the recipe holds out."""
    source = run.stage.offline.data
    if source.parts:
        assert run.stage.examples is not None
        return run.stage.examples
    if source.demonstrations is not None:
        assert run.taskset is not None
        owner, examples = run.stage, demonstrate_stage_tasks(run.taskset, source.demonstrations, run.seed)
    else:
        owner = run.plan.stages[read_stage_reference(source.stage) or run.name]
        examples = gather_stage_pairs(run, owner.name)
    return drop_heldout_examples(examples, run.plan.heldout, run.stage, but=[owner.holder])


def take_stage_units(run: StageRun, engine: Engine, examples: Examples) -> Units:
    """The examples in tokens: what the check of the recipe has kept, if it was made for such a model."""
    stage, limits = run.stage, (engine.max_context, engine.vocabulary)
    known, stage.kept = stage.kept, None
    if known is not None and (known.max_context, known.vocabulary) == limits:
        return known.units
    with run.show_waiting(f"{len(examples.train):,} rows are encoded"):
        renderer = build_stage_renderer(stage.options, engine.tokenizer)
        return encode_stage_examples(
            examples, stage.offline, renderer, limit=limits[0], vocabulary=limits[1], seed=run.seed
        )


def report_stage_units(run: StageRun, units: Units) -> None:
    for line in units.tally.lines():
        run.tracker.event(line)
    if split := describe_stage_split(run.stage, len(units.train), len(units.heldout)):
        run.tracker.event(split)
    if num_held_out := units.tally.held_out.total():
        run.record(rows_held_out=num_held_out)
        run.tracker.also = lambda: {"ledger/rows_held_out": float(num_held_out)}


# ---------------------------------------------------------------------- online


def train_stage_by_sampling(run: StageRun) -> Engine:
    stage, engine = run.stage.online, open_stage_engine(run)
    announce_stage_engine(run, engine)
    run = fit_stage_tasks(run, engine)
    taskset = run.taskset
    assert taskset is not None
    measure = choose_stage_measure(run, engine)
    measure_stage_before(run, measure)
    judge = open_other_stage_engine(run, stage.reward.model, scalar_head=True) if stage.reward else None
    renderer = build_stage_renderer(stage, engine.tokenizer)
    guide = Guide(stage, renderer, taskset, run.stage.traces) if stage.guidance else None
    if run.stage.traces is not None:
        run.tracker.event(run.stage.traces.report())
    teacher = open_other_stage_engine(run, stage.teacher) if stage.teacher else None
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
    checkpoints = open_stage_checkpoints(run, measure, [guide.traces.by_question] if guide and guide.traces else [])
    run.tracker.also = lambda: {"ledger/tasks_held_out": float(run.guard.num)} if run.guard.num else {}
    seed_everything(run.seed)
    train_online(engine, run.stage.algorithm, rollouts, tracker=run.tracker, checkpoints=checkpoints)
    for other in (judge, teacher):
        if other is not None:
            other.close()
    export_stage(run, engine, checkpoints.schedule)
    measure_stage_after(run, measure, checkpoints.schedule)
    return engine


# ---------------------------------------------------------------------- what it leaves


def open_stage_checkpoints(run: StageRun, measure: Measure | None, items: Iterable[object]) -> Checkpoints:
    """items: what a resumed run must have in common with the first one, beside the seed and the options."""
    stage = run.stage.options
    limits = RolloutOptions(in_rounds=stage.rollouts.in_rounds, history=stage.rollouts.history)
    # what may change when a run goes on; see pipeline/resume.py
    free: dict[str, Any] = {"epochs": None} if isinstance(stage, OfflineStage) else {"samples_every": 0}
    free |= {"checkpoint_every": 0, "keep_checkpoints": 1, "rollouts": limits, "optim": OptimConfig(), "steps": 1}
    same = replace(stage, **free)
    identity = fingerprint_items([run.seed, same, *items])
    return Checkpoints(
        run.folder.checkpoints, stage.checkpoint_every, stage.keep_checkpoints, identity,
        schedule=open_stage_schedule(run, measure),
    )  # fmt: skip


def export_stage(run: StageRun, engine: Engine, schedule: Schedule | None) -> None:
    """`final/` is complete or not there."""
    scratch = run.folder.path / ".final.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    (schedule.export if schedule else Engine.export)(engine, scratch)
    replace_folder(scratch, run.folder.final)

"""The held-out numbers of a stage, before it trains and after. A reward model is judged on pairs, a model with a task
by its answers, any other one on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from aurify.engine.engine import Engine
from aurify.evaluation.evaluate import (
    Estimate,
    Evaluation,
    compute_heldout_likelihoods,
    compute_heldout_scores,
    evaluate,
    heldout_loss,
    label_accuracy,
    length_correlation,
    pair_accuracy,
    pair_margin,
)
from aurify.loops.interrupt import run_loop_async
from aurify.loops.schedule import Entry, Schedule
from aurify.pipeline.recipe import build_stage_renderer
from aurify.pipeline.start import StageRun
from aurify.samplers.open import SamplerOptions, open_sampler
from aurify.tracking.figures import format_heldout_estimate, is_heldout_loss
from aurify.types import Datum

Number = tuple[float, dict[str, Any]]  # a held-out number; its error, how many it is a mean of, what belongs to it


@dataclass(frozen=True)
class Measure:
    """How a stage's model is judged on data that training never sees."""

    name: str
    take: Callable[[], Number]
    during: Callable[[], Number] | None = None  # while the stage trains and its sampler is at work; None: the same


def choose_stage_measure(run: StageRun, engine: Engine, heldout: Sequence[Datum] = ()) -> Measure | None:
    """heldout: the data of an offline stage's held-out rows."""
    lesson = run.stage.algorithm.learns_from
    if run.plan.recipe.evaluation.num_tasks == 0:
        return None
    if run.taskset is not None and not run.stage.scores:
        take = partial(measure_stage_answers, run, engine)
        # vLLM is at work while the stage trains: the engine's own sampler answers then
        own = replace(run.stage.options.sampler, kind="in_process", options={})
        busy = run.stage.options.sampler.kind != "in_process"
        return Measure(run.taskset.rubric.rewards[0].name, take, partial(take, own) if busy else None)
    if not heldout:
        run.tracker.event("nothing is held out to evaluate on")
        return None
    if run.stage.scores:
        return Measure("pair accuracy", partial(measure_stage_scores, run, engine, heldout))
    if lesson == "pairs":
        return Measure("likelier pairs", lambda: measure_stage_pairs(compute_heldout_likelihoods(engine, heldout)))
    if lesson == "labels":
        labels = [datum.label for datum in heldout]
        if len(set(labels)) < 2:
            run.tracker.event("the held-out answers all have one label: nothing to evaluate on")
            return None
        rank = partial(label_accuracy, labels=labels)
        return Measure(
            "likelier desirable", lambda: add_measure_details(rank(compute_heldout_likelihoods(engine, heldout)))
        )
    return Measure("held-out loss", lambda: add_measure_details(heldout_loss(engine, heldout)))


def add_measure_details(estimate: Estimate, **details: Any) -> Number:
    return estimate.value, {"error": estimate.error, "num": estimate.num, **details}


def measure_stage_pairs(values: Sequence[float], **details: Any) -> Number:
    margin = pair_margin(values)
    return add_measure_details(pair_accuracy(values), margin=margin.value, margin_error=margin.error, **details)


def measure_stage_scores(run: StageRun, engine: Engine, heldout: Sequence[Datum]) -> Number:
    scores = compute_heldout_scores(engine, heldout)
    length = length_correlation(scores, heldout)
    run.tracker.event(f"correlation of score and length: {length:+.2f}")
    return measure_stage_pairs(scores, length_correlation=length)


def measure_stage_answers(run: StageRun, engine: Engine, chosen: SamplerOptions | None = None) -> Number:
    assert run.taskset is not None
    recipe, stage, taskset = run.plan.recipe, run.stage.options, run.taskset
    sampler = open_sampler(chosen or stage.sampler, engine, seed=run.seed)
    options, limits = recipe.evaluation, recipe.evaluation.limits or stage.limits

    async def answer() -> Evaluation:
        try:
            return await evaluate(
                taskset,
                sampler,
                build_stage_renderer(stage, engine.tokenizer),
                options.sampling,
                num_tasks=options.num_tasks,
                seed=recipe.seed,
                limits=limits,
                options=stage.rollouts,
            )
        finally:
            await sampler.close()

    with run.show_waiting(f"evaluating {min(options.num_tasks, len(taskset.heldout))} held-out tasks"):
        result = run_loop_async(answer())
    for note in result.notes:
        run.tracker.event(note)
    return add_measure_details(result, **result.metrics, limits=asdict(limits))


def measure_stage_before(run: StageRun, measure: Measure | None) -> None:
    """Measures the model that the stage starts from, unless its number is known: from before a kill, or from another
    stage."""
    results = run.run_folder.results()
    if measure is None or results[run.name].get("before") is not None:
        return
    of_answers = run.taskset is not None and not run.stage.scores
    known = find_known_stage_number(run, results, measure.name) if of_answers else None
    value, details = known or measure.take()
    run.record(measure=measure.name, before=value, details_before=details)
    run.tracker.heldout(measure.name, value, details)
    run.tracker.event(
        f"{measure.name} before: {format_heldout_estimate(value, details)}" + (" (measured before)" if known else "")
    )


def open_stage_schedule(run: StageRun, measure: Measure | None) -> Schedule | None:
    """The evaluations while the stage trains, where the recipe wants any."""
    options = run.plan.recipe.evaluation
    if measure is None or not options.every:
        return None

    def tell(entry: Entry, best: bool) -> None:
        run.tracker.heldout(measure.name, entry.value, entry.details)
        estimate = format_heldout_estimate(entry.value, entry.details)
        run.tracker.event(f"{measure.name} after step {entry.step}: {estimate}{', the best so far' if best else ''}")

    return Schedule(
        measure.during or measure.take,
        tell,
        options.every,
        is_heldout_loss({"measure": measure.name}),
        options.keep_best,
        options.stop_after,
        run.folder.best,
    )


def measure_stage_after(run: StageRun, measure: Measure | None, schedule: Schedule | None = None) -> None:
    """The number of the model that the stage leaves: that of the schedule, where there is one."""
    if measure is None:
        return
    if schedule is not None and (entry := schedule.final) is not None:
        num, last = len(schedule.history), schedule.history[-1].step
        run.record(
            after=entry.value, details_after=entry.details, best_step=entry.step, last_step=last, num_evaluations=num
        )
        ended = f", ended {schedule.total - last} steps early" if last < schedule.total else ""
        which = f"step {entry.step}, the best of {num} evaluations" if schedule.keep_best else f"step {entry.step}"
        estimate = format_heldout_estimate(entry.value, entry.details)
        run.tracker.event(f"{measure.name} after: {estimate} ({which}{ended})")
        return
    value, details = measure.take()
    run.record(after=value, details_after=details)
    run.tracker.heldout(measure.name, value, details)
    run.tracker.event(f"{measure.name} after: {format_heldout_estimate(value, details)}")


def find_known_stage_number(run: StageRun, results: dict[str, dict[str, Any]], measure: str) -> Number | None:
    """What the stage's model reaches on its task, if another stage has measured it: as its result, or as its own
    start."""
    options = run.stage.options
    limits = asdict(run.plan.recipe.evaluation.limits or options.limits)
    for stage, result in results.items():
        if result.get("measure") != measure or result.get("task") != options.task:
            continue
        for name, when in ((f"@{stage}", "after"), (result["model"], "before")):
            same = result.get(f"details_{when}", {}).get("limits", limits) == limits
            if name == options.model.name and result.get(when) is not None and same:
                return result[when], result[f"details_{when}"]
    return None

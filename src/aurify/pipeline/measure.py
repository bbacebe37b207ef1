"""The held-out numbers of a stage, before it trains and after. A reward model is judged on pairs, a model with a task
by its answers, any other one on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from aurify.engine.engine import Engine
from aurify.evaluation.evaluate import (
    Evaluation,
    evaluate,
    heldout_loss,
    length_correlation,
    likelier_desirable,
    likelier_pair_accuracy,
    pair_accuracy,
    scores_of,
)
from aurify.loops.interrupt import run_async
from aurify.pipeline.recipe import make_renderer
from aurify.pipeline.start import StageRun
from aurify.samplers.open import open_sampler
from aurify.types import Datum

Number = tuple[float, dict[str, Any]]  # a held-out number, and what belongs to it


@dataclass(frozen=True)
class Measure:
    """How a stage's model is judged on data that training never sees."""

    name: str
    take: Callable[[], Number]


def choose_measure(run: StageRun, engine: Engine, heldout: Sequence[Datum] = ()) -> Measure | None:
    """heldout: the data of an offline stage's held-out rows."""
    lesson = run.stage.algorithm.learns_from
    if run.plan.recipe.evaluation.num_tasks == 0:
        return None
    if run.taskset is not None and not run.stage.scores:
        return Measure("accuracy", partial(measure_accuracy, run, engine))
    if not heldout:
        run.tracker.event("nothing is held out to evaluate on")
        return None
    if run.stage.scores:
        return Measure("pair accuracy", partial(measure_pairs, run, engine, heldout))
    if lesson == "pairs":
        return Measure("likelier pairs", lambda: (likelier_pair_accuracy(engine, heldout), {"num": len(heldout) // 2}))
    if lesson == "labels":
        if len({datum.label for datum in heldout}) < 2:
            run.tracker.event("the held-out answers all have one label: nothing to evaluate on")
            return None
        return Measure("likelier desirable", lambda: (likelier_desirable(engine, heldout), {"num": len(heldout)}))
    return Measure("held-out loss", lambda: (heldout_loss(engine, heldout), {"num": len(heldout)}))


def measure_pairs(run: StageRun, engine: Engine, heldout: Sequence[Datum]) -> Number:
    scores = scores_of(engine, heldout)
    length = length_correlation(scores, heldout)
    run.tracker.event(f"correlation of score and length: {length:+.2f}")
    return pair_accuracy(scores), {"num": len(heldout) // 2, "length_correlation": length}


def measure_accuracy(run: StageRun, engine: Engine) -> Number:
    assert run.taskset is not None
    recipe, stage, taskset = run.plan.recipe, run.stage.options, run.taskset
    sampler = open_sampler(stage.sampler, engine, seed=run.seed)
    options, limits = recipe.evaluation, recipe.evaluation.limits or stage.limits

    async def answer() -> Evaluation:
        try:
            return await evaluate(
                taskset,
                sampler,
                make_renderer(stage, engine.tokenizer),
                options.sampling,
                num_tasks=options.num_tasks,
                seed=recipe.seed,
                limits=limits,
                options=stage.rollouts,
            )
        finally:
            await sampler.close()

    with run.show_waiting(f"evaluating {min(options.num_tasks, len(taskset.heldout))} held-out tasks"):
        result = run_async(answer())
    for note in result.notes:
        run.tracker.event(note)
    details = {key: value for key, value in result.record().items() if key != "accuracy"}
    return result.accuracy, details | {"limits": asdict(limits)}


def measure_before(run: StageRun, measure: Measure | None) -> None:
    """Measures the model that the stage starts from, unless its number is known: from before a kill, or from another
    stage."""
    results = run.run_folder.results()
    if measure is None or results[run.name].get("before") is not None:
        return
    known = find_known_number(run, results) if measure.name == "accuracy" else None
    value, details = known or measure.take()
    run.record(measure=measure.name, before=value, details_before=details)
    run.tracker.event(f"{measure.name} before: {value:.3f}" + (" (known)" if known else ""))


def measure_after(run: StageRun, measure: Measure | None) -> None:
    if measure is None:
        return
    value, details = measure.take()
    run.record(after=value, details_after=details)
    run.tracker.event(f"{measure.name} after: {value:.3f}")


def find_known_number(run: StageRun, results: dict[str, dict[str, Any]]) -> Number | None:
    """The accuracy of the stage's model on its task, if another stage has measured it: as its result, or as its own
    start."""
    options = run.stage.options
    limits = asdict(run.plan.recipe.evaluation.limits or options.limits)
    for stage, result in results.items():
        if result.get("measure") != "accuracy" or result.get("task") != options.task:
            continue
        for name, when in ((f"@{stage}", "after"), (result["model"], "before")):
            same = result.get(f"details_{when}", {}).get("limits", limits) == limits
            if name == options.model.name and result.get(when) is not None and same:
                return result[when], result[f"details_{when}"]
    return None

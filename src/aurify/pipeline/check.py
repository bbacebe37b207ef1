"""Checks a whole recipe before anything runs, and makes what its options name.

A run of hours must not end in its third stage over a mistake that could be seen at the start: references to stages,
files, methods, their options, tasks, models and rows are all looked at here, and in `contents.py` what needs the
model's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING

from aurify import tasks
from aurify.config import prefix_errors
from aurify.errors import UserError
from aurify.hardware import choose_device
from aurify.models.names import resolve_model
from aurify.pipeline.check_offline import check_offline_stage
from aurify.pipeline.check_online import check_online_stage
from aurify.pipeline.check_quantized import check_quantized
from aurify.pipeline.contents import Contents, Tell
from aurify.pipeline.examples import read_stage_examples
from aurify.pipeline.fit import fit_recipe
from aurify.pipeline.heldout import (
    collect_recipe_heldout,
    count_usable_rows,
    drop_heldout_examples,
    stage_holds_rows_out,
)
from aurify.pipeline.plan import Plan, PlannedStage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe, build_stage_algorithm, read_stage_reference
from aurify.pipeline.references import (
    check_stage_files,
    check_stage_reference,
    find_stage_references,
    name_stage_models,
)

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet

log = logging.getLogger("aurify")

MAX_CHECKED = 10_000  # training tasks, of a set without end


def check_recipe(
    recipe: Recipe, *, done: Collection[str] = (), keep: bool = True, fit: bool = True, tell: Tell = lambda line: None
) -> Plan:
    """Raises a UserError for the first thing that cannot work. done: stages that are finished, and are not run again.
    keep: rows in tokens, to train on them. fit: `memory: auto` may change the recipe. tell: is told how far it is."""
    stages: dict[str, PlannedStage] = {}
    for name, options in recipe.stages.items():
        tell(f"{name}: its options and files")
        with prefix_errors(f"stages.{name}"):
            stages[name] = check_stage(recipe, name, options, stages)
    heldout = collect_recipe_heldout(stages)
    for name, stage in stages.items():
        if stage.examples is not None:
            with prefix_errors(f"stages.{name}"):
                stage.examples = drop_heldout_examples(stage.examples, heldout, stage)
    plan = Plan(recipe, stages, heldout)
    Contents(plan, tell, keep).check(done)
    if fit and recipe.memory == "auto" and (fitted := fit_recipe(plan, done)):
        changed, overrides = fitted
        plan = check_recipe(changed, done=done, keep=keep, tell=tell)
        plan.fitted = [*overrides, *plan.fitted]
        return plan
    for caution in plan.cautions:
        log.warning("%s", caution)
    return plan


def check_stage(
    recipe: Recipe, name: str, options: OfflineStage | OnlineStage, earlier: Mapping[str, PlannedStage]
) -> PlannedStage:
    """earlier: the stages before it, checked."""
    targets = find_stage_references(options)
    for key, target in targets.items():
        if target not in earlier:
            reason = "comes later" if target in recipe.stages else "does not exist"
            known = ", ".join(f"@{other}" for other in earlier) or "none: this is the first"
            raise UserError(f"{key}: '@{target}' {reason}; the stages before {name!r} are {known}")
    algorithm = build_stage_algorithm(options, f"stages.{name}")
    stage = PlannedStage(name, options, algorithm)
    for key, target in targets.items():
        check_stage_reference(stage, key, earlier[target])
    check_stage_files(options)
    files = {
        key: resolve_model(model)
        for key, model in name_stage_models(options).items()
        if read_stage_reference(model) is None
    }
    choose_device(options.model.device)
    stage.quantized = check_quantized(options, files.get("model"), earlier)
    stage.taskset, stage.holder = resolve_stage_taskset(stage, earlier)
    if stage.taskset is not None and not any(other.taskset is stage.taskset for other in earlier.values()):
        every = stage.taskset.tasks or islice(stage.taskset.train(0), MAX_CHECKED)
        stage.taskset.rubric.check_tasks(chain(stage.taskset.heldout, every))
    if isinstance(options, OnlineStage):
        check_online_stage(options, algorithm, stage.taskset)
        return stage
    check_offline_stage(options, algorithm, stage.taskset)
    if options.data.parts:
        examples = read_stage_examples(
            options.data, algorithm.learns_from, recipe.seed, hold_out=stage_holds_rows_out(stage)
        )
        stage.examples, stage.num_rows = examples, count_usable_rows(examples, options)
    return stage


def resolve_stage_taskset(stage: PlannedStage, earlier: Mapping[str, PlannedStage]) -> tuple[TaskSet | None, str]:
    """The stage's task set and holder: those of an earlier stage with the same task, or new ones."""
    task = stage.options.task
    if task is None:
        return None, ""
    for other in earlier.values():
        if other.options.task == task:
            return other.taskset, other.holder
    options = dict(task)
    if "name" not in options:
        raise UserError(f"task: no name in {options}; write for example `task: {{name: largest_number}}`")
    return tasks.make(options.pop("name"), **options), f"task {task['name']!r} of stages.{stage.name}"

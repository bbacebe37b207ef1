"""Checks a whole recipe before anything runs, and makes what its options name.

A run of hours must not end in its third stage over a mistake that could be seen at the start: references to stages,
files, methods, their options, tasks, models and rows are all looked at here, and in `contents.py` what needs the
model's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurify import tasks
from aurify.config import prefix_errors, suggest_neighbour
from aurify.data.sources import check_data_source
from aurify.errors import UserError
from aurify.hardware import choose_device
from aurify.loops.examples import read_training_examples
from aurify.models.names import resolve_model
from aurify.pipeline.check_online import check_online_stage
from aurify.pipeline.check_quantized import check_quantized
from aurify.pipeline.contents import Contents, Tell
from aurify.pipeline.fit import fit_recipe
from aurify.pipeline.heldout import (
    collect_recipe_heldout,
    count_usable_rows,
    drop_heldout_examples,
    stage_holds_rows_out,
)
from aurify.pipeline.plan import Plan, PlannedStage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe, build_stage_algorithm, read_stage_reference
from aurify.rows.sources import is_one_row_file

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
        examples = read_training_examples(
            options.data, algorithm.learns_from, recipe.seed, hold_out=stage_holds_rows_out(stage)
        )
        stage.examples, stage.num_rows = examples, count_usable_rows(examples, options)
    return stage


# ---------------------------------------------------------------------- what a stage names


def name_stage_models(stage: OfflineStage | OnlineStage) -> dict[str, str]:
    """The models that a stage uses, by the option that names them."""
    names: dict[str, str | None] = {"model": stage.model.name}
    if isinstance(stage, OnlineStage):
        names |= {"reward": stage.reward.model if stage.reward else None, "teacher": stage.teacher}
    else:
        names["data.sample.reward"] = stage.data.sample.reward if stage.data.sample else None
    return {key: name for key, name in names.items() if name}


def find_stage_references(stage: OfflineStage | OnlineStage) -> dict[str, str]:
    """The earlier stages that this one needs, by the option that names them."""
    names = name_stage_models(stage)
    if isinstance(stage, OfflineStage) and (name := stage.data.stage):
        if not read_stage_reference(name):
            raise UserError(f"data.stage: {name!r} is no stage; write it with an @: '@{name}'")
        names["data.stage"] = name
    return {key: target for key, name in names.items() if (target := read_stage_reference(name)) is not None}


def check_stage_reference(stage: PlannedStage, key: str, target: PlannedStage) -> None:
    """target: what the option `key` names."""
    if key in ("reward", "data.sample.reward") and not target.scores:
        method = target.options.method
        raise UserError(f"{key}: '@{target.name}' trains no reward model (its method is {method})")
    if key in ("model", "teacher") and target.scores and not stage.scores:
        raise UserError(
            f"{key}: '@{target.name}' is a reward model: it has a scalar head and cannot write; name a stage before it"
        )
    if key == "data.stage" and target.algorithm.learns_from != "pairs":
        raise UserError(f"{key}: '@{target.name}' has no preference pairs to take over")


def name_stage_files(stage: OfflineStage | OnlineStage) -> dict[str, Path]:
    """The single files that a stage reads, by the option that names them."""
    if isinstance(stage, OnlineStage):
        return {"guidance.path": Path(stage.guidance.path)} if stage.guidance and stage.guidance.path else {}
    paths = {"data.path": stage.data.path, "data.heldout_path": stage.data.heldout_path}
    paths |= {f"data.mix.{number}.path": part.path for number, part in enumerate(stage.data.mix or ())}
    return {key: Path(path) for key, path in paths.items() if path and is_one_row_file(path)}


def check_stage_files(stage: OfflineStage | OnlineStage) -> None:
    for key, path in name_stage_files(stage).items():
        if not path.is_file():
            raise UserError(f"{key}: there is no file {str(path)!r}{suggest_neighbour(path)}")
    for part in stage.data.parts if isinstance(stage, OfflineStage) else ():
        check_data_source(part)


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


def check_offline_stage(stage: OfflineStage, algorithm: Any, taskset: TaskSet | None) -> None:
    data, pairs = stage.data, algorithm.learns_from == "pairs"
    if taskset is None and (data.demonstrations or data.sample):
        raise UserError(
            "data: demonstrations and samples come from a task: set `task:` in the stage or at the top of the recipe"
        )
    if pairs and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from preference pairs; use data.sample or data.path"
        )
    if not pairs and (data.sample or data.stage):
        raise UserError(
            f"data: {stage.method} learns from single answers, not from preference pairs; use demonstrations or path"
        )
    if algorithm.learns_from == "labels" and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from desirable and undesirable answers, and these would all "
            "be desirable; give data.path"
        )
    if data.demonstrations and taskset is not None and taskset.demonstration(taskset.heldout[0]) is None:
        raise UserError(f"data.demonstrations: the task {taskset.name!r} cannot write its own answers; give data.path")

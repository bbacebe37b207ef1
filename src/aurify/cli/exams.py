"""What `aurify eval` asks: the task of a run, of a recipe, or by name, and the way in which answers are sampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aurify.cli.names import NamedModel, resolve_recipe_argument
from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.environments.player import RolloutOptions
    from aurify.environments.rollout import Limits
    from aurify.tasks.taskset import TaskSet
    from aurify.types import SamplingParams

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Exam:
    """The held-out tasks of a task set, put to all models in the same way."""

    label: str
    task: Mapping[str, Any]  # its name and options
    taskset: TaskSet
    params: SamplingParams
    limits: Limits
    rollouts: RolloutOptions


def choose_exams(
    models: Sequence[NamedModel],
    recipe: str | None,
    task: str | None,
    options: Sequence[str],
    sampling: Options,
    max_turns: int | None,
    plugins: Iterable[str] = (),
) -> list[Exam]:
    """recipe: its tasks; else the task of the first model that a run has trained. sampling: what the command line
    says, which comes before what the evaluation of the recipe says."""
    from aurify import registry

    values, stages = read_exam_recipe(models, recipe)
    registry.load_plugins([*(values.get("plugins") or ()), *plugins])
    chosen = choose_tasks(stages, task, options, named=recipe or models[0].name)
    names = [str(task["name"]) for task, _ in chosen]
    labels = [
        name if names.count(name) == 1 else f"{name} {names[: k + 1].count(name)}" for k, name in enumerate(names)
    ]
    as_trained = values.get("evaluation") or {}
    return [
        build_exam(label, task, stage, as_trained, sampling, max_turns)
        for label, (task, stage) in zip(labels, chosen, strict=True)
    ]


def read_exam_recipe(models: Sequence[NamedModel], recipe: str | None) -> tuple[Options, list[Options]]:
    """The values of the recipe, and the options of the stages that may say what to ask."""
    from aurify.config import load_config

    if recipe is not None:
        values = load_config(resolve_recipe_argument(recipe))
        return values, [{**values, **(stage or {})} for stage in (values.get("stages") or {}).values()]
    found = next((model for model in models if model.run is not None), models[0])
    return found.recipe(), [found.stage_options()]


def choose_tasks(
    stages: Sequence[Options], task: str | None, options: Sequence[str], named: str
) -> list[tuple[dict[str, Any], Options]]:
    """(name and options of a task, the stage that has it), each task once. Those of the command line replace others."""
    from omegaconf import OmegaConf

    from aurify.pipeline.recipe import expand_recipe_shorthands

    known: list[tuple[dict[str, Any], Options]] = []
    for stage in stages:
        found = dict(expand_recipe_shorthands(stage).get("task") or {})
        if found and "name" not in found:
            raise UserError(f"task: no name in {found}; write for example `task: {{name: largest_number}}`")
        if found and all(found != other for other, _ in known):
            known.append((found, stage))
    if task is not None:
        known = [entry for entry in known if entry[0]["name"] == task] or [({"name": task}, (*stages, {})[0])]
    if not known:
        raise UserError(f"{named} does not say what to evaluate it on; add --task NAME, such as --task largest_number")
    for option in options:
        if "=" not in option:
            raise UserError(f"task option {option!r}: expected key=value")
    if options and len(known) > 1:
        raise UserError(
            f"{' '.join(options)}: of which task? There are {len(known)}: "
            f"{', '.join(str(e['name']) for e, _ in known)}; choose one with --task"
        )
    given: dict[str, Any] = dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(options))))  # type: ignore[arg-type]
    return [(entry | given, stage) for entry, stage in known]


def build_exam(
    label: str, task: Options, stage: Options, as_trained: Options, sampling: Options, max_turns: int | None
) -> Exam:
    """as_trained: the evaluation of the recipe."""
    from aurify import config, tasks
    from aurify.environments.player import RolloutOptions
    from aurify.environments.rollout import Limits
    from aurify.types import SamplingParams

    wanted = {"temperature": 0.0, **(as_trained.get("sampling") or {}), **sampling}
    params = config.build_options(SamplingParams, wanted, "options")
    limits = config.build_options(Limits, as_trained.get("limits") or stage.get("limits") or {}, "limits")
    options = dict(task)
    return Exam(
        label,
        task,
        tasks.make(options.pop("name"), **options),
        params,
        limits if max_turns is None else replace(limits, turns=max_turns),
        config.build_options(RolloutOptions, stage.get("rollouts") or {}, "rollouts"),
    )

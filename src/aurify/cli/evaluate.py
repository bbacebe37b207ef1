"""`aurify eval`: how well a model does a task, on tasks that training never sees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurify.cli.names import RUNS, NamedModel, RunsFolder, find_model
from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.evaluation.evaluate import Evaluation


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run, RUN:stage, a folder, a GGUF file, a catalogue name or a hub id.")
    ],
    options: Annotated[list[str] | None, typer.Argument(help="Options of the task, as key=value.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Name of the task; the one of the run if the model is a run's.")
    ] = None,
    num_tasks: Annotated[int | None, typer.Option(help="Held-out tasks to ask.", show_default="all")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each task.")] = 1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one answer.", show_default="as in the run, or 256")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 is greedy: the same model always gets the same number.", show_default="as in the run, or 0"
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Of the likeliest tokens, this share.", show_default="as in the run, or 1")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; those of the run where none is given.")
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option(help="Turns with an environment.", show_default="as in the run, or 16")
    ] = None,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    show: Annotated[int, typer.Option(help="Print so many questions with their answers.")] = 0,
    plugin: Annotated[
        list[str] | None, typer.Option(help="A file with tasks and rewards of yours; those of the run are known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    runs: RunsFolder = RUNS,
) -> None:
    """Evaluate a model on the held-out tasks of a task set."""
    from aurify import config, registry, tasks
    from aurify.cli.writer import open_writer
    from aurify.environments.player import RolloutOptions
    from aurify.evaluation.evaluate import evaluate as evaluate_with
    from aurify.types import SamplingParams

    for name, number in (("--num-tasks", num_tasks), ("--samples", samples), ("--max-turns", max_turns)):
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}; expected at least 1")
    place = find_model(model, runs)
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop}
    params = config.build(SamplingParams, sampling_options(place, given), "options")
    registry.load_plugins([*(place.recipe().get("plugins") or ()), *(plugin or ())])
    chosen = task_options(place, task, options or [])
    taskset = tasks.make(chosen.pop("name"), **chosen)
    with open_writer(place.name, device=device) as writer:
        result = writer.run(
            evaluate_with(
                taskset,
                writer.sampler,
                writer.renderer,
                params,
                num_tasks=num_tasks,
                samples_per_task=samples,
                seed=seed,
                max_context=writer.sampler.max_context,
                max_turns=max_turns or turns_of(place),
                options=config.build(RolloutOptions, stage_of(place).get("rollouts") or {}, "rollouts"),
            )
        )
    if as_json:
        typer.echo(json.dumps({"model": place.name, "task": taskset.name, **result.record()}))
    else:
        show_evaluation(f"{place.name} on {taskset.name}", result, show)


def stage_of(place: NamedModel) -> dict[str, Any]:
    """What the recipe says of the stage that the model came from, and what all stages share; {} where it has none."""
    recipe = place.recipe()
    shared = {name: recipe[name] for name in ("rollouts",) if recipe.get(name)}
    return {**shared, **(recipe.get("stages", {}).get(place.stage) or {})}


def sampling_options(place: NamedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that the run's own evaluation samples with, and what the command line says otherwise."""
    known = place.recipe().get("evaluation", {}).get("sampling") or {}
    return {"temperature": 0.0, **known, **{name: value for name, value in given.items() if value is not None}}


def turns_of(place: NamedModel) -> int:
    from aurify.environments.rollout import MAX_TURNS

    evaluation = place.recipe().get("evaluation", {})
    return evaluation.get("max_turns") or stage_of(place).get("max_turns") or MAX_TURNS


def task_options(place: NamedModel, task: str | None, options: Sequence[str]) -> dict[str, Any]:
    """`name`, and the options of the task: those of the run that the model came from, then the command line's."""
    from omegaconf import OmegaConf

    recipe = place.recipe()
    stage = recipe.get("stages", {}).get(place.stage, {})
    found = stage.get("task") or recipe.get("task")
    known: dict[str, Any] = dict(found) if isinstance(found, dict) else {"name": found} if found else {}
    if task is not None and task != known.get("name"):
        known = {"name": task}
    if not known:
        raise UserError(
            f"{place.name} does not say what to evaluate it on; add --task NAME, such as --task largest_number"
        )
    for option in options:
        if "=" not in option:
            raise UserError(f"task option {option!r}: expected key=value")
    return known | dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(options))))  # type: ignore[arg-type]


def show_evaluation(title: str, result: Evaluation, num_shown: int) -> None:
    for group in result.groups[:num_shown]:
        for trajectory in group.trajectories:
            typer.secho(f"\n{group.task.prompt[-1]['content']}", dim=True)
            typer.echo(trajectory.text)
            typer.secho(f"reward {trajectory.reward}, expected {group.task.answer}", dim=True)
    for note in result.notes:
        typer.secho(note, dim=True)
    typer.echo(f"{title}: accuracy {result.accuracy:.3f} ± {result.error:.3f} on {result.num_tasks} held-out tasks")
    for name, value in sorted(result.metrics.items()):
        typer.echo(f"  {name:24} {value:.4g}")

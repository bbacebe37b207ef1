"""`aurify eval`: how well a model does a task, on tasks that training never sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurify.cli.names import RUNS, Device, ModelName, NamedModel, RunsFolder, resolve_model_argument
from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.evaluation.evaluate import Evaluation


def evaluate_model(
    model: ModelName,
    options: Annotated[list[str] | None, typer.Argument(help="Options of the task, as key=value.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Name of the task; the one of the run if the model is a run's.")
    ] = None,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="Held-out tasks to ask.", show_default="all")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each task.")] = 1,
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
        int | None, typer.Option(min=1, help="Turns with an environment.", show_default="as in the run, or 16")
    ] = None,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    show: Annotated[int, typer.Option(help="Print so many questions with their answers.")] = 0,
    plugin: Annotated[
        list[str] | None, typer.Option(help="A file with tasks and rewards of yours; those of the run are known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: Device = "auto",
    runs: RunsFolder = RUNS,
) -> None:
    """Evaluate a model on the held-out tasks of a task set."""
    from aurify import config, registry, tasks
    from aurify.cli.writer import open_writer
    from aurify.environments.player import RolloutOptions
    from aurify.environments.rollout import Limits
    from aurify.evaluation.evaluate import evaluate
    from aurify.types import SamplingParams

    found = resolve_model_argument(model, runs)
    recipe = found.recipe()
    stage = found.stage_options()
    as_trained = recipe.get("evaluation") or {}
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop}
    sampling = {"temperature": 0.0, **(as_trained.get("sampling") or {})}
    sampling |= {name: value for name, value in given.items() if value is not None}
    params = config.build_options(SamplingParams, sampling, "options")
    limits = config.build_options(Limits, as_trained.get("limits") or stage.get("limits") or {}, "limits")
    registry.load_plugins([*(recipe.get("plugins") or ()), *(plugin or ())])
    chosen = choose_task_argument(found, stage.get("task") or recipe.get("task"), task, options or [])
    taskset = tasks.make(chosen.pop("name"), **chosen)
    with open_writer(found, device=device) as writer:
        result = writer.run(
            evaluate(
                taskset,
                writer.sampler,
                writer.renderer,
                params,
                num_tasks=num_tasks,
                samples_per_task=samples,
                seed=seed,
                max_context=writer.sampler.max_context,
                limits=limits if max_turns is None else replace(limits, turns=max_turns),
                options=config.build_options(RolloutOptions, stage.get("rollouts") or {}, "rollouts"),
            )
        )
    if as_json:
        typer.echo(json.dumps({"model": found.name, "task": taskset.name, **result.record()}))
    else:
        print_evaluation(f"{found.name} on {taskset.name}", result, show)


def choose_task_argument(found: NamedModel, of_run: Any, task: str | None, options: Sequence[str]) -> dict[str, Any]:
    """`name`, and the options of the task: those of the run that the model came from, then the command line's."""
    from omegaconf import OmegaConf

    known: dict[str, Any] = dict(of_run) if isinstance(of_run, dict) else {"name": of_run} if of_run else {}
    if task is not None and task != known.get("name"):
        known = {"name": task}
    if not known:
        raise UserError(
            f"{found.name} does not say what to evaluate it on; add --task NAME, such as --task largest_number"
        )
    for option in options:
        if "=" not in option:
            raise UserError(f"task option {option!r}: expected key=value")
    return known | dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(options))))  # type: ignore[arg-type]


def print_evaluation(title: str, result: Evaluation, num_shown: int) -> None:
    for group in result.groups[:num_shown]:
        for trajectory in group.trajectories:
            typer.secho(f"\n{group.task.prompt[-1]['content']}", dim=True)
            typer.echo(trajectory.text)
            typer.secho(f"reward {trajectory.reward}, expected {group.task.answer}", dim=True)
    for note in result.notes:
        typer.secho(note, dim=True)
    typer.echo(f"{title}: {result.measure} {result.value:.3f} ± {result.error:.3f} on {result.num} held-out tasks")
    for name, value in sorted(result.metrics.items()):
        typer.echo(f"  {name:24} {value:.4g}")

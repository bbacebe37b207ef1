"""`aurify eval`: how well models do a task, on tasks that training never sees."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurify.cli.exams import Exam, choose_exams
from aurify.cli.names import RUNS, Device, NamedModel, RunsFolder, resolve_model_argument, resolve_suite_argument
from aurify.cli.writer import Writer, open_writer
from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.evaluation.evaluate import Evaluation
    from aurify.evaluation.folder import EvaluationFolder
    from aurify.evaluation.suite import Suite

EVALS = Path("evals")
WIDTH = 240  # columns of tables in files and pipes, where nothing has to fold


# Long by the options that it has; what it does is below them.
def evaluate_models(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [KEY=VALUE...]",
            help="Models: a run, RUN/stage, a folder, a GGUF file, a catalogue name or a hub id. Then options of the "
            "task, as key=value.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="Name of the task; that of the first model that is of a run, where none is given."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Ask the held-out tasks of this recipe, sampled as it says.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Tasks of lm-evaluation-harness: math_small, math_full, general, or a file of yours."),
    ] = None,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="Held-out tasks to ask.", show_default="all")] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each task, for pass@k and majority@k; needs a temperature.")
    ] = 1,
    success: Annotated[float, typer.Option(help="From what reward on an answer is right, for pass@k.")] = 1.0,
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
    out: Annotated[
        Path | None, typer.Option(help="A new folder for numbers, answers and page.", show_default="evals/TIME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: Device = "auto",
    runs: RunsFolder = RUNS,
) -> None:
    """Evaluate models on held-out tasks, and compare them question by question."""
    from aurify.evaluation.scores import score_evaluation
    from aurify.evaluation.suite import hub_switched_off

    typed, options = split_model_names(names)
    models = [resolve_model_argument(name, runs) for name in typed]
    check_models(models)
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop}
    sampling = {name: value for name, value in given.items() if value is not None}
    suites = choose_suites(suite or (), options, num_tasks)
    asked = not suites or task is not None or recipe is not None
    if suites and asked and options:
        raise UserError(f"{' '.join(options)}: of the task or of the suite? Run them one after the other")
    exams = choose_exams(models, recipe, task, options, sampling, max_turns, plugin or ()) if asked else []
    check_samples(exams, samples)
    folder = open_evaluation_folder(
        out, exams, suites, models, num_tasks=num_tasks, samples=samples, seed=seed, success=success
    )
    with hub_switched_off(any(one.offline for one in suites)):
        for model in models:
            with open_writer(model, device=device) as writer:
                for exam in exams:
                    result = ask_model(writer, exam, num_tasks=num_tasks, samples=samples, seed=seed)
                    folder.add(score_evaluation(model.label, exam.label, result, samples, success))
                    if not as_json:
                        print_evaluation(f"{model.label} on {exam.label}", result, show)
                for one in suites:
                    ask_suite(writer, one, model.label, folder, quiet=as_json)
    finish_evaluation(folder, as_json)


def split_model_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models, and options of the task."""
    options = [name for name in names if "=" in name and not Path(name).exists()]
    models = [name for name in names if name not in options]
    if not models:
        raise UserError(f"no model before {' '.join(options)}; write `aurify eval MODEL --task NAME key=value`")
    return models, options


def check_models(models: Sequence[NamedModel]) -> None:
    """All of them, before the first is asked."""
    from aurify.models.names import resolve_model

    labels = [model.label for model in models]
    if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise UserError(f"{twice[0]} is named twice; name each model once")
    for model in models:
        if model.run is None:
            resolve_model(model.name)


def check_samples(exams: Sequence[Exam], samples: int) -> None:
    if samples > 1 and any(exam.params.temperature == 0 for exam in exams):
        raise UserError(
            f"--samples {samples}: at temperature 0 all answers to a task are the same; add --temperature 0.8, say"
        )


def open_evaluation_folder(
    path: Path | None, exams: Sequence[Exam], suites: Sequence[Suite], models: Sequence[NamedModel], **settings: Any
) -> EvaluationFolder:
    """It is made with the first result."""
    from aurify.evaluation.folder import EvaluationFolder
    from aurify.tracking.machine import describe_run_start

    if path is not None and path.exists():
        raise UserError(f"--out {path}: it is there already; name a new folder")
    path = path or EVALS / f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}"
    asked = [
        {"label": e.label, "task": e.task, "sampling": asdict(e.params), "limits": asdict(e.limits)} for e in exams
    ]
    known = {model.label: model.name for model in models}
    told = {"suites": [asdict(suite) for suite in suites]} if suites else {}
    return EvaluationFolder(
        path, {**describe_run_start(settings["seed"]), "models": known, "tasks": asked, **told, "settings": settings}
    )


def choose_suites(names: Sequence[str], overrides: list[str], num_tasks: int | None) -> list[Suite]:
    """Read before a model is loaded. num_tasks: of each of their tasks."""
    from aurify.evaluation.harness import PURPOSE
    from aurify.evaluation.suite import hub_switched_off, read_suite
    from aurify.files import require

    suites = [read_suite(resolve_suite_argument(name), overrides) for name in names]
    if suites:
        with hub_switched_off(any(suite.offline for suite in suites)):
            require("lm_eval", "lm-eval", PURPOSE)
    return [suite if num_tasks is None else replace(suite, limit=num_tasks) for suite in suites]


def ask_model(writer: Writer, exam: Exam, *, num_tasks: int | None, samples: int, seed: int) -> Evaluation:
    from aurify.evaluation.evaluate import evaluate

    return writer.run(
        evaluate(
            exam.taskset,
            writer.sampler,
            writer.renderer,
            exam.params,
            num_tasks=num_tasks,
            samples_per_task=samples,
            seed=seed,
            max_context=writer.sampler.max_context,
            limits=exam.limits,
            options=exam.rollouts,
        )
    )


def ask_suite(writer: Writer, suite: Suite, label: str, folder: EvaluationFolder, *, quiet: bool) -> None:
    from aurify.evaluation.harness import open_harness_model, run_suite

    assert writer.engine is not None
    model = open_harness_model(writer.engine, writer.sampler, writer.renderer, writer.run)
    rows = folder.add_suite(label, suite.name, run_suite(suite, model))
    if model.num_cut:
        typer.echo(f"{label} on {suite.name}: {model.num_cut} prompts were too long and lost their beginning", err=True)
    for row in () if quiet else rows:
        error = f"{row['value']:.3f} ± {row['error']:.3f}"
        typer.echo(f"{label} on {row['task']}: {row['measure']} {error} on {row['num']} questions")


def finish_evaluation(folder: EvaluationFolder, as_json: bool) -> None:
    """The page, and on the console the table where there is more than one number."""
    from aurify.report.evaluation import write_evaluation_page

    page = write_evaluation_page(folder.path)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder.path), **folder.to_record()}))
        return
    if len(folder.rows) > 1 or "pass_at" in folder.rows[0]:
        print_tables(folder.rows, folder.comparisons)
    typer.echo(f"Numbers and answers: {folder.path}; page: {page}")


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


def print_tables(rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> None:
    """All numbers in one table, and below it what the models differ by on the same questions."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from aurify.tracking.figures import list_comparison_cells, list_evaluation_cells

    for heads, lines in (list_evaluation_cells(rows), list_comparison_cells(comparisons)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for head in heads:
            table.add_column(head, overflow="fold")
        for line in lines:
            table.add_row(*line)
        if lines:
            wide = None if sys.stdout.isatty() else WIDTH
            Console(highlight=False, width=wide).print(table)

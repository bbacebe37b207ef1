"""`aurify train`: runs a recipe, or goes on with a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from aurify.cli.names import RECIPE, RUNS, RunsFolder, resolve_recipe_argument, resolve_run_argument
from aurify.errors import UserError
from aurify.foreign_keys import translate_key

if TYPE_CHECKING:
    from aurify.tracking.run_folder import RunFolder


class TrainCommand(TyperCommand):
    """Whoever writes `--steps 3` is told how a recipe's options are written."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if isinstance(name := getattr(error, "option_name", None), str) and hasattr(error, "message"):
                key = name.strip("-").replace("-", "_")
                example = translate_key(key, known=["stages"]) or f", such as stages.NAME.{key}=VALUE"
                error.message += f". What a recipe says is written without dashes{example}"
            raise


def train(
    recipe: Annotated[str | None, RECIPE] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted.key=value, such as stages.grpo.steps=10.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan and the first example; train nothing.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run: its folder, its name, or last.")
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Show answers of the model now and then.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Train a model by a recipe: all stages in order, each evaluated before and after."""
    changes = list(overrides or ())
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        changes.insert(0, recipe)
        recipe = None
    run = resolve_run_argument(resume, runs) if resume else None
    if recipe is None and run is None:
        raise UserError(
            "no recipe; write `aurify train recipe.yaml`, or `aurify train --resume RUN` to go on with a run"
        )
    path = resolve_recipe_argument(recipe) if recipe is not None else run / "recipe.yaml"  # type: ignore[operator]
    run_recipe(path, changes, dry_run=dry_run, resume=run, samples=samples, runs=runs)


def run_recipe(
    path: Path,
    overrides: list[str],
    *,
    dry_run: bool = False,
    resume: Path | None = None,
    samples: bool = False,
    runs: Path = RUNS,
) -> None:
    """Everything is checked before a folder is made, so that a mistake leaves nothing behind."""
    from rich.console import Console

    from aurify import config

    values = config.load_config(path, overrides)
    with Console(stderr=True).status("checking the recipe ...") as status, config.prefix_errors(path):
        from aurify.pipeline.check import check_recipe
        from aurify.pipeline.recipe import build_recipe

        recipe, done = build_recipe(values), find_finished_stages(resume, values) if resume else []
        plan = check_recipe(
            recipe, done=done, keep=not dry_run, fit=resume is None,
            tell=lambda line: status.update(f"checking the recipe: {line} ..."),
        )  # fmt: skip
        if plan.fitted:  # the run keeps the recipe that it runs
            values = config.load_config(path, [*overrides, *plan.fitted])
            if build_recipe(values) != plan.recipe:
                raise UserError(
                    f"memory: auto would set {' '.join(plan.fitted)}, but a stage repeats what stands at the top of "
                    "the recipe; leave it out of the stage, or set it there by hand"
                )
    if dry_run:
        from aurify.cli.plan import print_plan

        print_plan(plan)
        return

    from aurify.pipeline.run import run_pipeline
    from aurify.tracking.run_folder import RunFolder

    try:
        folder = reopen_run(resume, values) if resume else RunFolder.create(runs, values)
    except OSError as error:
        raise UserError(f"no run can be kept in {runs}/ ({error}); give another folder with --runs") from error
    typer.echo(f"{'Going on with' if resume else 'Run'} {folder.path}")
    for override in plan.fitted:
        typer.echo(f"memory: auto sets {override}")
    try:
        run_pipeline(plan, folder, show_samples=samples)
    except Exception:
        if not resume and not folder.has_work():
            shutil.rmtree(folder.path)
            typer.echo(f"Nothing was trained; {folder.path} is removed", err=True)
        raise
    finally:
        if folder.path.exists() and not folder.is_locked():
            add_report(folder.path)


def find_finished_stages(run: Path, values: dict[str, Any]) -> list[str]:
    """The stages of a run that are done. Raises where the run cannot go on with these values."""
    from aurify.pipeline.resume import check_recipe_changes
    from aurify.pipeline.run import is_stage_finished
    from aurify.tracking.run_folder import RunFolder

    folder = RunFolder.open(run)
    check_recipe_changes(folder, values)
    return [stage for stage in values["stages"] if is_stage_finished(folder, stage)]


def reopen_run(run: Path, values: dict[str, Any]) -> RunFolder:
    """Opens a run to train on, and records with what other options it does."""
    from aurify.pipeline.resume import check_recipe_changes, describe_recipe_change, record_run_leg
    from aurify.tracking.run_folder import RunFolder

    folder = RunFolder.open(run)
    with folder.lock():
        changes = check_recipe_changes(folder, values)
        for key, change in changes.items():
            typer.echo(f"{key}: {describe_recipe_change(change)}")
        if changes:
            record_run_leg(folder, values, changes)
    return folder


def add_report(run: Path) -> None:
    """An error in the report does not hide how the run ended."""
    from aurify.report.report import write_report

    try:
        typer.echo(f"Report: {write_report(run)}")
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        typer.echo(f"The report could not be written ({problem}); `aurify report {run}` tries again", err=True)

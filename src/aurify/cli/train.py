"""`aurify train`: runs a recipe, or goes on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aurify.cli.places import RUNS, RunsFolder, find_run
from aurify.errors import UserError


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a recipe that comes along: quickstart.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted.key=value, such as stages.grpo.steps=10.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; train nothing.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run: its folder, its name, or last.")
    ] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Train a model by a recipe: all stages in order, each evaluated before and after."""
    changes = list(overrides or ())
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        changes.insert(0, recipe)
        recipe = None
    run = find_run(resume, runs) if resume else None
    if recipe is None and run is None:
        raise UserError(
            "no recipe; write `aurify train recipe.yaml`, or `aurify train --resume RUN` to go on with a run"
        )
    run_recipe(recipe, changes, dry_run=dry_run, resume=run, runs=runs)


def run_recipe(recipe: str | None, overrides: list[str], *, dry_run: bool, resume: Path | None, runs: Path) -> None:
    raise NotImplementedError

"""`aurify demo`: the quickstart recipe on a small real model."""

from __future__ import annotations

from typing import Annotated

import typer

from aurify.cli.names import RUNS, RunsFolder, resolve_recipe_argument


def demo(
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, as for `aurify train`.")] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Train a small real model through all four stages: a few minutes on two CPU cores."""
    from aurify.cli.train import run_recipe

    run_recipe(resolve_recipe_argument("quickstart"), list(overrides or ()), runs=runs)

"""`aurify runs`: a table of what has been run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from aurify.cli.names import RUNS, RunsFolder, list_runs, read_values
from aurify.errors import UserError

MAX_ERROR = 200  # characters


def runs(
    folder: RunsFolder = RUNS,
    num: Annotated[int, typer.Option("--num", "-n", help="How many of the newest; 0 is all.")] = 20,
) -> None:
    """List the runs, the newest last: stages, how each ended, and its held-out number."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = list_runs(folder)
    if not found:
        raise UserError(
            f"there are no runs in {folder}/; `aurify demo` or `aurify train RECIPE` makes one (--runs: another folder)"
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "recipe", "status", "held-out numbers"):
        table.add_column(column, overflow="fold")
    for run in found[-num:]:
        table.add_row(run.name, *format_run(run))
    Console(highlight=False).print(table)


def format_run(run: Path) -> tuple[str, str, str]:
    """Recipe, status and results of a run, as far as it got."""
    from aurify.tracking.run_folder import RunFolder

    folder, recipe = RunFolder(run), read_values(run / "recipe.yaml")
    results = folder.results()
    stages = list(dict.fromkeys([*recipe.get("stages", {}), *results]))
    told = "finished"
    for stage in stages:
        if (status := folder.status(stage)) != "finished":
            error = results.get(stage, {}).get("error", {}).get("text", "")
            told = f"{status}: {stage}" + (f" ({textwrap.shorten(error, MAX_ERROR)})" if error else "")
            break
    if legs := folder.describe_legs():
        told += f"; went on with other options: {'; '.join(legs)}"
    numbers = ", ".join(format_stage_result(stage, results.get(stage, {})) for stage in stages)
    return str(recipe.get("name", "")), told, numbers


def format_stage_result(stage: str, result: dict[str, Any]) -> str:
    """`grpo 0.31 → 0.85 ±0.03 (64)`: the standard error of the last number, and of how many it is the mean."""
    before, after, details = result.get("before"), result.get("after"), result.get("details_after") or {}
    if after is None:
        return f"{stage} -"
    change = f"{after:.2f}" if before is None else f"{before:.2f} → {after:.2f}"
    error = f" ±{details['error']:.2f}" if details.get("error") else ""
    return f"{stage} {change}{error}" + (f" ({details['num']})" if "num" in details else "")

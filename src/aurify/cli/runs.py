"""`aurify runs`: a table of what has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aurify.cli.names import RUNS, RunsFolder, list_runs, read_values
from aurify.errors import UserError

DONE = "finished"


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
        table.add_row(run.name, *row_of(run))
    Console(highlight=False).print(table)


def row_of(run: Path) -> tuple[str, str, str]:
    """Recipe, status and results of a run, as far as it got."""
    recipe = read_values(run / "recipe.yaml")
    results = read_values(run / "results.json")
    stages = list(dict.fromkeys([*recipe.get("stages", {}), *results]))
    finished = [stage for stage in stages if results.get(stage, {}).get("status") == DONE]
    if len(finished) == len(stages):
        status = DONE
    else:
        stopped = next(stage for stage in stages if stage not in finished)
        status = f"unfinished: {stopped}"  # it may be running, or have been stopped: no file tells
    return str(recipe.get("name", "")), status, ", ".join(result_of(stage, results.get(stage, {})) for stage in stages)


def result_of(stage: str, result: dict[str, Any]) -> str:
    before, after = result.get("before"), result.get("after")
    if after is None:
        return stage
    change = f"{after:.2f}" if before is None else f"{before:.2f} → {after:.2f}"
    return f"{stage} {change}"

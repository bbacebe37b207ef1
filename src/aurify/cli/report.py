"""`aurify report`: builds a run's report.html anew, and pictures of its rewards."""

from __future__ import annotations

from typing import Annotated

import typer

from aurify.cli.names import RUNS, RunName, RunsFolder, resolve_run_argument


def report(
    run: RunName = "last",
    runs: RunsFolder = RUNS,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Also rewards as PNG, and training_stats.json (extra plots).")
    ] = False,
) -> None:
    """Rebuild report.html from a run's files: curves, rewards and transcripts in one page that needs no network."""
    from aurify.report.report import write_report

    folder = resolve_run_argument(run, runs)
    typer.echo(write_report(folder))
    if pictures:
        from aurify.report.pictures import draw_pictures

        for path in draw_pictures(folder):
            typer.echo(path)

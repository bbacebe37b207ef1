"""`aurify report`: builds a run's report.html anew."""

from __future__ import annotations

from typing import Annotated

import typer

from aurify.cli.names import RUNS, RunsFolder, find_run


def report(
    run: Annotated[str, typer.Argument(help="A run's folder, its name, or last.")] = "last",
    runs: RunsFolder = RUNS,
) -> None:
    """Rebuild report.html from a run's files: curves, rewards and transcripts in one page that needs no network."""
    from aurify.report.report import write_report

    typer.echo(write_report(find_run(run, runs)))

"""`aurify report`: builds a run's report.html anew."""

from __future__ import annotations

import typer

from aurify.cli.names import RUNS, RunName, RunsFolder, find_run


def report(run: RunName = "last", runs: RunsFolder = RUNS) -> None:
    """Rebuild report.html from a run's files: curves, rewards and transcripts in one page that needs no network."""
    from aurify.report.report import write_report

    typer.echo(write_report(find_run(run, runs)))

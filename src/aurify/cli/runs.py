"""`aurify runs`: a table of what has been run."""

from __future__ import annotations

from aurify.cli.places import RUNS, RunsFolder


def runs(folder: RunsFolder = RUNS) -> None:
    """List the runs: stages, how each ended, and its number."""

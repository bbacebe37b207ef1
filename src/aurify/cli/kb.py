"""`aurify kb`: what can be done with a knowledge base beside filling and searching it."""

from __future__ import annotations

import typer

from aurify.cli.serve import serve

kb = typer.Typer(no_args_is_help=True, help="Measure, list and serve knowledge bases.")


@kb.callback()
def group() -> None:
    """Measure, list and serve knowledge bases."""


kb.command()(serve)

"""`aurify merge`: an adapter and its base become one plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter, ours or peft's.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
) -> None:
    """Merge an adapter into its base model, so that everything that reads plain folders can use it."""
    from aurify.engine.merge import merge_adapter

    merge_adapter(adapter.expanduser(), folder.expanduser())
    typer.echo(f"merged into {folder}")

"""`aurify merge`: an adapter and its base become one plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter, ours or peft's.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
) -> None:
    """Merge an adapter into its base model, so that everything that reads plain folders can use it. The merged model
    must say what base and adapter say. `aurify export` has more formats, and adds a model card."""
    from aurify.cli.names import is_reward_model
    from aurify.engine.adapter_files import CONFIG_FILE
    from aurify.engine.merge import merge_adapter
    from aurify.export.card import Origin
    from aurify.export.export import export_model

    adapter, folder = adapter.expanduser(), folder.expanduser()
    if is_reward_model(adapter) or not (adapter / CONFIG_FILE).exists():
        merge_adapter(adapter, folder)
    else:
        typer.echo(export_model("folder", Origin(str(adapter)), folder, card=False)["safetensors"])
    typer.echo(f"merged into {folder}")

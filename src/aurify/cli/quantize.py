"""`aurify quantize`: a folder with weights in 4 or 8 bits, to train adapters on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, a GGUF file or a name of `aurify models`.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the quantised model.")],
    to: Annotated[str, typer.Option("--to", help="nf4 (4 bits) or int8.")] = "nf4",
) -> None:
    """Write a model's weights in 4 or 8 bits, for recipes with `lora` and for plain transformers."""
    from aurify.models.quantize import quantize_model

    num_bytes = quantize_model(model, folder.expanduser(), to)
    typer.echo(f"{folder}: {num_bytes / 2**20:,.0f} MiB of weights, the layers' in {to}")

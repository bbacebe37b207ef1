"""`aurify models`: what can be named without a download, and what the caches hold."""

from __future__ import annotations

from pathlib import Path

import typer


def models() -> None:
    """List the models that Aurify knows by name, and the ones in the local caches."""
    from rich.console import Console
    from rich.table import Table

    from aurify.engine import catalog

    console = Console()
    table = Table(title="Known by name", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("name", "parameters", "licence", "hub id", "on this machine"):
        table.add_column(column)
    for known in catalog.KNOWN.values():
        state = "yes" if catalog.is_cached(known) else "no: fetched on first use"
        table.add_row(known.name, known.parameters, known.licence, known.hub_id, state)
    table.add_row("random:tiny", "0.1M", "", "", "made in memory, for tests")
    console.print(table)
    typer.echo(f"\nAurify's cache: {catalog.cache_folder()}")
    cached = hub_models()
    typer.echo(f"Hub cache: {', '.join(name for name, _ in cached) or 'empty'}")
    typer.echo("Any hub id (owner/name), folder of a saved model, adapter folder or .gguf file can be used as well.")


def hub_models() -> list[tuple[str, Path]]:
    """Models that the hub's client has downloaded: (owner/name, folder)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*"))
    return [
        (folder.name.removeprefix("models--").replace("--", "/"), folder)
        for folder in folders
        if any(folder.glob("snapshots/*"))
    ]

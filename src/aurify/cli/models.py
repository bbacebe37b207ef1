"""`aurify models`: what can be named without a download, and what the caches hold."""

from __future__ import annotations

import typer


def models() -> None:
    """List the models that Aurify knows by name, and the ones in the local caches."""
    from aurify.files import cache_folder
    from aurify.models import catalog

    for known in catalog.KNOWN.values():
        state = "on this machine" if catalog.is_cached_model(known) else "fetched when it is used first"
        typer.echo(f"{known.name:24}{state}")
        typer.secho(f"{'':24}{known.hub_id}, {known.parameters} parameters, {known.licence}", dim=True)
    typer.echo(f"{'random:tiny':24}made in memory: two random layers, for tests")
    typer.echo(f"\nAurify's cache: {cache_folder()}")
    typer.echo(f"Hub cache: {', '.join(catalog.list_hub_models()) or 'empty'}")
    typer.echo("Any hub id (owner/name), folder of a saved model, adapter folder or .gguf file can be used as well.")

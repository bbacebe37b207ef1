"""`aurify list`: the names that a recipe can use, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from aurify import registry
from aurify.cli.models import models
from aurify.cli.names import list_recipes
from aurify.config import did_you_mean
from aurify.errors import UserError

REGISTERED = {f"{kind}s": kind for kind in registry.ENTRIES}  # as people write it -> as the registry calls it
KINDS = ("recipes", "models", *REGISTERED)


def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS) + ".")],
    plugin: Annotated[list[str] | None, typer.Option(help="A file with tasks, rewards and so on of yours.")] = None,
) -> None:
    """List the recipes, models, tasks, rewards, environments, tools, algorithms or data set functions by name."""
    if kind not in KINDS and (kind := f"{kind}s") not in KINDS:
        raise UserError(f"nothing is listed as {kind[:-1]!r}{did_you_mean(kind[:-1], KINDS)}")
    if kind == "models":
        models()
        return
    rows = list(describe_recipes() if kind == "recipes" else describe_entries(REGISTERED[kind], plugin or []))
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        typer.echo(f"{name:{width}}" + typer.style(text, dim=True))


def describe_recipes() -> Iterator[tuple[str, str]]:
    for name, path in list_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        yield name, first.removeprefix("# ") if first.startswith("#") else ""


def describe_entries(kind: str, plugins: list[str]) -> Iterator[tuple[str, str]]:
    from aurify.cli.reference import summarise_entry

    registry.load_plugins(plugins)
    for name in registry.names(kind):  # type: ignore[arg-type]
        yield name, summarise_entry(kind, name)  # type: ignore[arg-type]

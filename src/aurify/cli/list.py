"""`aurify list`: the names that a recipe can use, one line each."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import takewhile
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
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=", ".join(KINDS) + ".")] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="A file with tasks, rewards and so on of yours.")] = None,
) -> None:
    """List the recipes, models, tasks, rewards, environments, tools, algorithms or data set functions by name."""
    if kind is None:
        raise UserError(f"say what to list: `aurify list KIND`; the kinds are {', '.join(KINDS)}")
    if kind not in KINDS and (kind := f"{kind}s") not in KINDS:
        raise UserError(f"nothing is listed as {kind[:-1]!r}{did_you_mean(kind[:-1], KINDS)}")
    if kind == "models":
        models()
        return
    rows = list(describe_recipes() if kind == "recipes" else describe_entries(REGISTERED[kind], plugin or []))
    print_columns(rows)


def print_columns(rows: Iterable[tuple[str, str]]) -> None:
    """A name and a text a line."""
    rows = list(rows)
    indent = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        typer.echo(f"{name:{indent}}" + typer.style(wrap_hanging(text, indent), dim=True))


def wrap_hanging(text: str, indent: int) -> str:
    """On a terminal a long text goes on below itself, `indent` columns from the left; elsewhere it stays one line."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - indent, 30)
    return f"\n{'':{indent}}".join(textwrap.wrap(text, width, break_on_hyphens=False))


def describe_recipes() -> Iterator[tuple[str, str]]:
    for name, path in list_recipes().items():
        lines = takewhile(lambda line: re.match(r"# \S", line), path.read_text(encoding="utf-8").splitlines())
        sentences = re.split(r"(?<=\.) (?=[A-Z])", " ".join(line.lstrip("# ") for line in lines))
        yield name, " ".join(sentences[:2])


def describe_entries(kind: str, plugins: list[str]) -> Iterator[tuple[str, str]]:
    from aurify.cli.reference import explain_entry_briefly

    registry.load_plugins(plugins)
    for name in registry.list_registered(kind):  # type: ignore[arg-type]
        yield name, explain_entry_briefly(kind, name)  # type: ignore[arg-type]

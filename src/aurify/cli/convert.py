"""`aurify convert`: makes a recipe of a config of TRL, axolotl or LLaMA-Factory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.errors import UserError

if TYPE_CHECKING:
    from aurify.conversion.draft import Draft


class Library(StrEnum):
    trl = "trl"
    axolotl = "axolotl"
    llama_factory = "llama-factory"


def convert(
    file: Annotated[Path, typer.Argument(help="YAML, or training arguments as JSON.")],
    to: Annotated[Path | None, typer.Option(help="Where the recipe goes; without it: to the screen.")] = None,
    library: Annotated[
        Library | None, typer.Option("--from", help="Whose config it is; without it: by its keys.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="sft, dpo, grpo ...; without it: what the config says.")] = None,
) -> None:
    """Make a recipe of a config of TRL, axolotl or LLaMA-Factory, and list what is not taken over."""
    from aurify import config, registry
    from aurify.conversion.convert import convert_config
    from aurify.files import replaced_file

    if method is not None:
        registry.get_entry("algorithm", method)
    if to is not None and to.exists():
        raise UserError(f"{to} is there already; give another name to --to, or remove it")
    with config.prefix_errors(file):
        draft = convert_config(file, library, method)
    text = write_draft(draft, file)
    if to is None:
        typer.echo(text, nl=False)
    else:
        with replaced_file(to) as new:
            new.write_text(text, encoding="utf-8")
        typer.echo(f"{to}: a recipe for {draft.method}; `aurify train {to} --dry-run` checks it")
    for note in draft.notes:
        typer.echo(f"Note: {note}", err=True)
    for left in draft.left:
        typer.echo(f"not taken over: {left}", err=True)


def write_draft(draft: Draft, file: Path) -> str:
    from aurify.cli.commented import write_commented_recipe

    head = [f"{file.name} of {draft.library}, by `aurify convert`; beside each key is what it was there."]
    head += [f"Note: {note}" for note in draft.notes]
    head += ["Not taken over:", *(f"  {left}" for left in draft.left)] if draft.left else []
    return write_commented_recipe(draft.recipe(), draft.recipe_comments(), head)

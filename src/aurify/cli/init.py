"""`aurify init`: writes a first recipe that fits the machine, from four answers or from flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aurify.errors import UserError

MODEL, TASK, HERE = "smollm2-135m-instruct", "largest_number", "here"


def init(
    to: Annotated[Path, typer.Argument(help="Where the recipe goes.")] = Path("recipe.yaml"),
    model: Annotated[
        str | None, typer.Option(help="A name of `aurify list models`, a folder, a GGUF file or a hub id.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file, a folder, owner/name of the hub, or a task of `aurify list tasks`.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Of `aurify list algorithms`; without it: by what the data holds.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="What it is to fit: GiB or the name of a card, such as 8GB; here: this machine.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the usual answers.")] = False,
) -> None:
    """Write a commented recipe for your model and data that fits this machine."""
    if to.exists():
        raise UserError(f"{to} is there already; name another file: `aurify init FILE`")
    asks = not yes and None in (model, data, method, card)
    can_ask = sys.stdin.isatty()
    if asks and not can_ask and (model is None or data is None):
        raise UserError(
            "nobody can be asked here; give the answers: `aurify init --model NAME --data FILE_OR_TASK --method sft`, "
            "or take the usual ones with --yes"
        )
    asks = asks and can_ask
    model = model or ask("Model", MODEL, asks)
    data = data or ask("Data (a file, a folder, owner/name of a hub), or a task", TASK, asks)

    from aurify import registry
    from aurify.pipeline.starter import choose_starter_method

    if method is None:
        method = ask("Method", choose_starter_method(data), asks)
    registry.get_entry("algorithm", method)
    card = card or ask("Memory to fit: GiB, the name of a card, or here", HERE, asks)
    typer.echo(write_recipe(to, model, data, method, None if card == HERE else card))
    typer.echo(f"`aurify train {to} --dry-run` shows the plan and an example; `aurify train {to}` trains")


def ask(question: str, usual: str, asks: bool) -> str:
    return str(typer.prompt(question, default=usual)) if asks else usual


def write_recipe(to: Path, model: str, data: str, method: str, card: str | None) -> str:
    """Writes it once it has passed the check. Returns what it needs in memory."""
    from rich.console import Console

    from aurify.cli.commented import write_commented_recipe
    from aurify.files import replaced_file
    from aurify.pipeline.starter import fit_starter, make_starter

    starter = make_starter(model, data, method, to.stem)
    with Console(stderr=True).status("checking the recipe ...") as status:
        fit_starter(starter, card, lambda line: status.update(f"checking the recipe: {line} ..."))
    head = [f"{method} of {model}, by `aurify init`. Every key: docs/reference.md, `aurify help KEY`.", *starter.memory]
    to.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(to) as new:
        new.write_text(write_commented_recipe(starter.values, starter.comments, head), encoding="utf-8")
    return f"{to} is written. " + "; ".join(starter.memory)

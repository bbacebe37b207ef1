"""`aurify help`: what a key of a recipe means, or a name that a recipe can use."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.cli.list import wrap_hanging
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.foreign_keys import translate_key

if TYPE_CHECKING:
    from aurify.cli.reference import Option

EXAMPLES = "such as stages.sft.optim.lr, optim or lr; or the name of a method, task, reward, environment or tool"


def explain(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help=f"A key, {EXAMPLES}.")] = None,
) -> None:
    """Explain a key of a recipe (type, default, meaning), or a name that a recipe can use."""
    if key is None:
        raise UserError(f"say what to explain: `aurify help KEY`, {EXAMPLES}. Commands: `aurify --help`")
    from aurify import registry
    from aurify.cli.reference import explain_entry, list_recipe_keys

    options = [option for part in list_recipe_keys().values() for option in part] + list_method_options()
    found = find_explained_options(key, options)
    kinds = [kind for kind in registry.ENTRIES if key in registry.ENTRIES[kind]]
    if not found and not kinds:
        names = {name for entries in registry.ENTRIES.values() for name in entries}
        known = names | {option.key.rpartition(".")[2] for option in options}
        if context.parent and key in context.parent.command.list_commands(context):  # type: ignore[attr-defined]
            raise UserError(f"{key!r} is a command: `aurify {key} --help` explains it")
        more = translate_key(key.rpartition(".")[2]) or did_you_mean(key, known, listing=False)
        more = more or "; docs/reference.md has all keys, `aurify list KIND` all names"
        raise UserError(f"no key and no name is called {key!r}{more}")
    for kind in kinds:
        text, own = explain_entry(kind, key)  # type: ignore[arg-type]
        typer.echo(typer.style(f"{kind} {key}", bold=True) + f"\n    {wrap_hanging(text, 4)}")
        print_options(own)
    print_options(found)


def find_explained_options(key: str, options: Sequence[Option]) -> list[Option]:
    """The key itself with those below it; else all keys that end in it."""
    from aurify.cli.reference import ANY_STAGE

    wanted = re.sub(r"^stages\.[^.]+(\.|$)", ANY_STAGE, key).removesuffix(".")
    short = wanted.removeprefix(ANY_STAGE)
    for exact in (wanted, short):
        if found := [option for option in options if f"{option.key}.".startswith(f"{exact}.")]:
            return found
    return [option for option in options if f".{option.key}".endswith(f".{short}")]


def list_method_options() -> list[Option]:
    """The options of all methods, each once, with the methods that have it."""
    from dataclasses import replace

    from aurify import registry
    from aurify.cli.reference import ANY_STAGE, explain_entry

    methods: dict[Option, list[str]] = defaultdict(list)
    for name in registry.list_registered("algorithm"):
        for option in explain_entry("algorithm", name)[1]:
            methods[option].append(name)
    return [
        replace(option, key=f"{ANY_STAGE}algorithm.{option.key}", text=f"{option.text} ({', '.join(names)})")
        for option, names in methods.items()
    ]


def print_options(options: Iterable[Option]) -> None:
    for option in options:
        default = option.default if option.default in ("required", "") else f"default {option.default}"
        typer.echo(
            f"{typer.style(option.key, fg=typer.colors.CYAN)}  {'; '.join(filter(None, (option.type, default)))}"
        )
        if option.text:
            typer.echo(f"    {wrap_hanging(option.text, 4)}")

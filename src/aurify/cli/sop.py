"""`aurify sop`: a folder of procedures, looked at, checked and searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

sop = typer.Typer(no_args_is_help=True, help="Procedures for models to follow.")
Folder = Annotated[Path, typer.Argument(help="A folder of procedures in Markdown or YAML.")]


@sop.command(name="list")
def print_procedures(folder: Folder) -> None:
    """The procedures of a folder, and when to use them."""
    from rich.console import Console
    from rich.table import Table

    from aurify.procedures.library import read_procedure_folder

    table = Table("name", "when", "steps", "tools", box=None)
    for procedure in read_procedure_folder(folder):
        table.add_row(procedure.name, procedure.when, str(len(procedure.steps)), ", ".join(procedure.tools))
    Console().print(table)


@sop.command(name="show")
def print_procedure(folder: Folder, name: str) -> None:
    """One procedure, as a model reads it."""
    from aurify.procedures.library import SOPLibrary, SOPOptions

    typer.echo(SOPLibrary(SOPOptions(str(folder), embedder=None))[name].prompt())


@sop.command(name="check")
def print_sop_problems(folder: Folder) -> None:
    """Everything that is wrong with the procedures of a folder."""
    from aurify.procedures.library import check_procedure_folder

    read = check_procedure_folder(folder)
    for path, procedure, problems in read:
        for problem in problems:
            typer.secho(f"{path}: {problem}", fg=typer.colors.RED)
        if procedure and not problems:
            steps = count_noun(len(procedure.steps), "step")
            signs = count_noun(len(procedure.to_record()["signs"]), "sign")
            typer.echo(f"{path}: {procedure.name}, {steps}, {signs} for a reward to see")
    bad = sum(bool(problems) for _, _, problems in read)
    typer.echo(f"{count_noun(len(read), 'procedure')}, {bad} with problems")
    if bad:
        raise typer.Exit(1)


@sop.command(name="find")
def print_found_procedures(
    folder: Folder,
    query: str,
    limit: Annotated[int, typer.Option(help="Procedures to show.")] = 3,
    words: Annotated[bool, typer.Option("--words", help="By words alone, without an embedder.")] = False,
) -> None:
    """The procedures that a question asks for, with the scores of each stage."""
    from aurify.knowledge.embedding import MINILM
    from aurify.procedures.library import SOPLibrary, SOPOptions

    options = SOPOptions(str(folder), limit=limit, embedder=None if words else MINILM)
    found = SOPLibrary(options).find(query)
    for match in found:
        stages = ", ".join(f"{stage} {score:.3f}" for stage, score in sorted(match.scores.items()))
        typer.echo(f"{match.score:.3f}  {match.procedure.name}  ({stages})")
    if not found:
        typer.echo("no procedure fits")


def count_noun(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

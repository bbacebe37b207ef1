"""The `aurify` command. One file a command; heavy modules are imported when a command runs: `--help` answers at once.

A mistake of the user (`UserError`) or a refusal of the machine (full disk, too little memory) ends as one paragraph on
stderr with exit code 2. The traceback shows with `--debug` alone.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aurify.cli.chat import chat
from aurify.cli.convert import convert
from aurify.cli.data import data
from aurify.cli.demo import demo
from aurify.cli.doctor import doctor
from aurify.cli.evaluate import evaluate_models
from aurify.cli.export import export, push_folder
from aurify.cli.help import explain
from aurify.cli.ingest import ingest
from aurify.cli.init import init
from aurify.cli.kb import kb
from aurify.cli.list import list_names
from aurify.cli.memory import plan_recipe
from aurify.cli.merge import merge
from aurify.cli.models import models
from aurify.cli.quantize import quantize
from aurify.cli.report import report
from aurify.cli.runs import runs
from aurify.cli.sample import sample
from aurify.cli.search import search
from aurify.cli.serve_rollouts import serve_rollouts
from aurify.cli.sop import sop
from aurify.cli.train import TrainCommand, train
from aurify.cores import limit_library_memory
from aurify.errors import UserError, explain_os_error

USER_ERROR, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """The group of all commands: errors become exit codes here alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--debug` may stand anywhere."""
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        debug = ctx.params.get("debug", False)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            print_complaint("stopped", find_interrupt_text(error))
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else explain_os_error(error)
            if text is None:
                raise  # a mistake of ours
            if debug:
                traceback.print_exc()
            else:
                print_complaint("error", " ".join(text.split()))
            raise typer.Exit(USER_ERROR) from None


def find_interrupt_text(error: BaseException | None) -> str:
    """What an interrupt says. A second Ctrl-C says nothing, but the first one, in whose course it came, does."""
    while error is not None and not str(error):
        error = error.__context__
    return "" if error is None else str(error)


def print_complaint(label: str, text: str) -> None:
    styled = typer.style(label, fg=typer.colors.RED, bold=True)
    typer.echo(f"{styled}: {text}" if text else styled, err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Lines(logging.Handler):
    """What the library has to say, a line each on the stderr of the moment: a progress bar stays below it."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(typer.style(record.getMessage(), dim=True), err=True)


def print_version(wanted: bool) -> None:
    if wanted:
        from aurify import __version__

        typer.echo(f"aurify {__version__}")
        raise typer.Exit


@app.callback()
def set_global_flags(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """Turn base models into gold: SFT, reward models, preferences and reinforcement learning from one recipe."""
    limit_library_memory()
    log = logging.getLogger("aurify")
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    if not log.handlers:
        log.addHandler(Lines())


app.command()(demo)
app.command(cls=TrainCommand)(train)
app.command()(init)
app.command()(convert)
app.command(name="plan")(plan_recipe)
app.command(name="eval")(evaluate_models)
app.command()(sample)
app.command()(chat)
app.command(name="list")(list_names)
app.command(name="help")(explain)
app.command()(runs)
app.command()(report)
app.command()(ingest)
app.command()(search)
app.command()(models)
app.command()(merge)
app.command()(quantize)
app.command()(export)
app.command(name="push")(push_folder)
app.command(name="serve-rollouts", context_settings={"allow_extra_args": True, "ignore_unknown_options": False})(
    serve_rollouts
)
app.command()(doctor)
app.add_typer(data, name="data")
app.add_typer(kb, name="kb")
app.add_typer(sop, name="sop")


def main() -> None:
    try:
        sys.exit(app())
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while Python shuts down prints nothing


if __name__ == "__main__":
    main()

"""`aurify chat`: talk to a model in the terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from aurify.cli.acting import act_on_question, find_chat_environment
from aurify.cli.names import RUNS, Device, ModelName, RunsFolder, resolve_model_argument

if TYPE_CHECKING:
    from aurify.cli.acting import Factory
    from aurify.cli.writer import Writer
    from aurify.procedures.library import SOPLibrary
    from aurify.types import Message, SamplingParams

COMMANDS = "/reset forgets the conversation, /system TEXT sets a system prompt, /quit or Ctrl-D ends"


def chat(
    model: ModelName = "last",
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens of one answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Sample from the smallest set of tokens with this much probability.")
    ] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same conversation.")] = None,
    sop: Annotated[
        str | None, typer.Option(help="A folder of procedures; each question gets those that it asks for.")
    ] = None,
    tools: Annotated[
        list[str] | None, typer.Option(help="A tool that the model may call; give the option again for more.")
    ] = None,
    act: Annotated[
        bool, typer.Option("--act", help="Let the environment that the stage was trained in answer, with its tools.")
    ] = False,
    device: Device = "auto",
    runs: RunsFolder = RUNS,
) -> None:
    """Chat with a model, a run or one stage of a run."""
    from aurify import config
    from aurify.cli.writer import open_writer
    from aurify.types import SamplingParams

    found = resolve_model_argument(model, runs)
    values = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    params = config.build_options(SamplingParams, values, "options")
    library = None
    if sop is not None:
        from aurify.procedures.library import open_procedure_library

        library = open_procedure_library(sop)
    factory = find_chat_environment(found, tools or (), act=act)
    with open_writer(found, device=device) as writer:
        typer.secho(f"{found.name}. {COMMANDS}.", dim=True)
        converse(writer, params, system, library, factory)


def converse(
    writer: Writer,
    params: SamplingParams,
    system: str,
    library: SOPLibrary | None = None,
    factory: Factory | None = None,
) -> None:
    """factory: of environments that answer the model; each question has one of its own."""
    messages = begin_chat(system)
    while True:
        text = ask_person()
        if text is None or text in ("/quit", "/exit"):
            return
        if text == "/reset":
            messages = begin_chat(system)
            typer.secho("(forgotten)", dim=True)
        elif text.startswith("/system"):
            system = text.removeprefix("/system").strip()
            messages = begin_chat(system)
            typer.secho("(new conversation)", dim=True)
        elif text.startswith("/"):
            typer.secho(f"({COMMANDS})", dim=True)
        elif text:
            if library is not None:
                add_procedures_to_chat(library, writer, system, messages, text)
            messages.append({"role": "user", "content": text})
            if factory is None:
                print_answer(writer, params, messages)
            else:
                act_on_question(writer, params, messages, factory)


def begin_chat(system: str) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def add_procedures_to_chat(
    library: SOPLibrary, writer: Writer, system: str, messages: list[Message], text: str
) -> None:
    """Puts the procedures that a question asks for under the system prompt. A question that asks for none keeps the
    earlier ones."""
    found = [match.procedure for match in library.find(text)]
    if found:
        tokenizer = writer.renderer.tokenizer
        prompt = library.build_prompt(found, system, lambda part: len(tokenizer.encode(part)), has_tools=False)
        messages[:] = begin_chat(prompt) + [message for message in messages if message["role"] != "system"]
        typer.secho(f"(procedure: {', '.join(procedure.name for procedure in found)})", dim=True)
        if tools := dict.fromkeys(tool for procedure in found for tool in procedure.tools):
            typer.secho(f"(a chat has no tools: the model is told to ask you to do {', '.join(tools)})", dim=True)


def ask_person() -> str | None:
    """None at the end of the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (gives input() editing and history)
    try:
        said = input("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    if not sys.stdin.isatty():
        print(said)  # a terminal shows what is typed; a pipe does not
    return said


def print_answer(writer: Writer, params: SamplingParams, messages: list[Message]) -> None:
    """Appends the model's answer, which shows while it is written. Ctrl-C takes the question back and nothing else."""
    from rich.console import Console

    num_forgotten = drop_oldest_turns(writer, params, messages)
    if num_forgotten:
        typer.secho(f"(the context is full: the oldest {num_forgotten} messages were dropped)", dim=True)
    name = typer.style("model> ", fg=typer.colors.CYAN)
    begun = False
    waiting = Console(stderr=True).status("...")
    lines = Wrap(shutil.get_terminal_size().columns if sys.stdout.isatty() else None, len("model> "))

    def show(piece: str) -> None:
        nonlocal begun
        waiting.stop()
        typer.echo(lines.add(piece) if begun else name + lines.add(piece), nl=False)
        begun = True

    try:
        with waiting:
            reply = writer.stream(messages, params, show)
        typer.echo(lines.end(), nl=False)
    except KeyboardInterrupt:
        messages.pop()
        typer.secho("\n(stopped)" if begun else "(stopped)", dim=True)
        return
    messages.append({"role": "assistant", "content": reply})
    typer.echo("" if begun else name)


class Wrap:
    """Breaks lines between words while a text arrives in pieces: a word is written when it is complete. width: columns
    of the terminal; None writes pieces as they come. column: where the text begins."""

    def __init__(self, width: int | None, column: int) -> None:
        self.width, self.column, self.word = width, column, ""

    def add(self, piece: str) -> str:
        if self.width is None:
            return piece
        written = ""
        for sign in piece:
            if not sign.isspace():
                self.word += sign
                if cell_len(sign) > 1 or len(self.word) >= self.width:  # East Asian text may break after each sign
                    written += self.end()
                continue
            written += self.end()
            if sign == "\n" or self.column < self.width:  # a space at the end of a line is not needed
                written += sign
                self.column = 0 if sign == "\n" else self.column + 1
        return written

    def end(self) -> str:
        """The word that was held back."""
        word, size = self.word, cell_len(self.word)
        self.word = ""
        breaks = self.width is not None and self.column > 0 and self.column + size > self.width
        self.column = size if breaks else self.column + size
        return "\n" + word if breaks else word


def drop_oldest_turns(writer: Writer, params: SamplingParams, messages: list[Message]) -> int:
    """Drops the oldest messages, never the system prompt or the question, until the answer has room."""
    first = 1 if messages[0]["role"] == "system" else 0
    dropped = 0
    while (
        len(messages) - first > 1
        and len(writer.renderer.prompt(messages)) + params.max_tokens > writer.sampler.max_context
    ):
        del messages[first : first + 2]
        dropped += 2
    return dropped

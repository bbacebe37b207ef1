"""`aurify data inspect`: what a file or data set holds, before anything is trained on it. `aurify data medquad`: a
knowledge base and questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from aurify.data.encode import Encoded, Encoding, Unit
    from aurify.data.example import Example
    from aurify.data.forms import Reader
    from aurify.renderer import Renderer
    from aurify.rows.row import Tally
    from aurify.types import Datum, Lesson

QUANTILES = {"shortest": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
HUB = "lavita/MedQuAD"
DEFAULT = "smollm2-135m-instruct"
data = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")


@data.callback()
def describe_data_commands() -> None:
    """Look at data before training on it."""


@data.command(name="inspect")
def inspect_data(
    path: Annotated[str, typer.Argument(help="A file, a pattern, a folder, or owner/name of the hub.")],
    model: Annotated[
        str | None, typer.Option(help=f"Whose tokenizer and chat template; {DEFAULT} where it is on this machine.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="What would be cut or dropped above so many tokens?")] = None,
    learn: Annotated[
        str | None, typer.Option(help="Read it as answers, pairs or labels; otherwise as what it holds.")
    ] = None,
    form: Annotated[str | None, typer.Option(help="Read it in this form, whatever is recognised.")] = None,
    train_on: Annotated[str, typer.Option(help="assistant, last or marked: which messages are trained.")] = "assistant",
    tools_as_text: Annotated[
        bool, typer.Option("--tools-as-text", help="Write tools and calls into the text.")
    ] = False,
    split: Annotated[str, typer.Option(help="Of a data set of the hub, or of the files in a folder.")] = "train",
    subset: Annotated[str | None, typer.Option(help="Of a data set of the hub.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Look at the first so many rows; the hub is streamed.")] = None,
    num: Annotated[int, typer.Option("--num", "-n", help="How many examples to show.")] = 3,
) -> None:
    """Say which form the rows are in, show what is trained, lengths, and what would be left out and why."""
    from rich.console import Console
    from rich.markup import escape

    from aurify import config
    from aurify.data.encode import Encoding
    from aurify.data.forms import ONES, detect_row_form
    from aurify.data.sources import Part, read_data_source
    from aurify.errors import UserError
    from aurify.models.model import load_tokenizer
    from aurify.renderer import Renderer
    from aurify.rows.row import Tally

    console = Console(soft_wrap=True, highlight=False)
    source = {"path": path, "split": split, "subset": subset, "max_rows": max_rows, "form": form}
    tally = Tally()
    if learn not in (None, *ONES):
        raise UserError(f"--learn: {learn!r} is none of {', '.join(ONES)}")
    with Console(stderr=True).status(f"reading {path} ..."):
        rows = read_data_source(config.build_options(Part, source, "options"), tally, skip_bad=True)
        options = config.build_options(Encoding, {"train_on": train_on, "on_bad_row": "skip"}, "options")
        model = model or default_inspect_model()
        renderer = Renderer(load_tokenizer(model), tools_as_text=tools_as_text)
        reader = detect_row_form(rows, cast("Lesson | None", learn), form)
        examples = reader.read_all(rows, tally, skip_bad=True)
        encoded, renderer = encode_for_console(examples, renderer, options, console)
    tally.add(encoded.tally)
    print_form(console, path, reader, tally, len(encoded.units))
    if unread := reader.unread(rows):
        console.print(f"[bold]columns that are not read[/] {escape(', '.join(unread))}")
    console.print(f"[bold]tokens by[/] {model}", markup=True)
    for example, unit in list(zip(encoded.examples, encoded.units, strict=True))[:num]:
        print_unit(console, example.location, unit, renderer)
    console.print()
    print_lengths(console, [datum for unit in encoded.units for datum in unit])
    if max_length is not None:
        print_cuts(console, encoded, renderer, options, max_length)
    print_findings(console, tally)


@data.command(name="medquad")
def make_medquad_files(
    path: Annotated[str, typer.Argument(help="A file or folder with MedQuAD's rows, or owner/name of the hub.")] = HUB,
    out: Annotated[Path, typer.Option(help="The folder that is written.")] = Path("medquad"),
    documents: Annotated[int | None, typer.Option(min=2, help="At most so many, chosen by the seed; else all.")] = None,
    heldout: Annotated[float, typer.Option(help="The share of topics whose questions are held out.")] = 0.1,
    demonstrations: Annotated[int, typer.Option(min=1, help="Questions that come with a search to imitate.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything that is chosen.")] = 0,
) -> None:
    """Make a knowledge base of MedQuAD's answers, and questions to train on and held out, for rag-medquad."""
    import asyncio

    from rich.console import Console

    from aurify.data.medquad import make_medquad
    from aurify.environments.search_r1 import SHORT_INSTRUCTIONS, open_search, write_information

    def show(query: str, topk: int, max_chars: int) -> str:
        return write_information(asyncio.run(open_search(str(out / "kb"), None, topk).find(query)), max_chars)

    console = Console(soft_wrap=True, highlight=False)
    with Console(stderr=True).status("reading") as status:
        counts = make_medquad(
            path,
            out,
            max_documents=documents,
            heldout_share=heldout,
            num_demonstrations=demonstrations,
            instructions=SHORT_INSTRUCTIONS,
            show=show,
            seed=seed,
            progress=lambda summary: status.update(f"{summary.documents:,} documents, {summary.chunks:,} passages"),
        )
    left_out = counts.pop("left_out")
    console.print(f"{out}: " + ", ".join(f"{num:,} {name}" for name, num in counts.items()), markup=False)
    for reason, num in left_out.items():
        console.print(f"left out: {num:,} rows {reason}", markup=False)


def default_inspect_model() -> str:
    """A tokenizer that costs no download."""
    from aurify.models import catalog

    known = catalog.KNOWN.get(DEFAULT)
    return DEFAULT if known is not None and catalog.is_cached_model(known) else "random:tiny"


def encode_for_console(
    examples: Sequence[Example], renderer: Renderer, options: Encoding, console: Console
) -> tuple[Encoded, Renderer]:
    """Where the template leaves tools out, that is told, and tools are shown as text."""
    from aurify.data import encode as data
    from aurify.errors import UserError
    from aurify.renderer import Renderer

    try:
        return data.encode(examples, renderer, options), renderer
    except UserError as error:
        if "set tools_as_text" not in str(error):
            raise
        console.print(f"[yellow]{str(error).split('; ')[0].partition(': ')[2]}: shown with tools_as_text[/]")
        renderer = Renderer(renderer.tokenizer, tools_as_text=True)
        return data.encode(examples, renderer, options), renderer


def print_form(console: Console, path: str, reader: Reader, tally: Tally, num_units: int) -> None:
    from rich.markup import escape

    from aurify.data.forms import ONES
    from aurify.rows.row import count_rows

    console.print(f"[bold]{escape(path)}[/]: {count_rows(tally.num_rows)}")
    share = f"by {reader.num} of the first {count_rows(reader.num_looked_at)}"
    console.print(f"[bold]recognised as[/] {escape(reader.line())}, {share}")
    console.print(f"[bold]{num_units:,} usable[/] to train on {ONES[reader.lesson]}")


def print_unit(console: Console, location: str, unit: Unit, renderer: Renderer) -> None:
    from aurify.cli.plan import highlight_trained

    console.print()
    console.print(f"--- {location}", markup=False, style="dim")
    names = ["chosen: ", "rejected: "] if len(unit) == 2 else ["undesirable: " if unit[0].label < 0 else ""]
    for name, datum in zip(names, unit, strict=True):
        console.print(f"[dim]{name}[/]", end="")
        console.print(highlight_trained(renderer, datum, console.color_system is not None, ("[[", "]]")))


def print_lengths(console: Console, data: Sequence[Datum]) -> None:
    lengths = sorted(len(datum.tokens) for datum in data)
    if not lengths:
        return
    trained = sum(weight > 0 for datum in data for weight in datum.weights)
    told = (f"{name} {lengths[round(share * (len(lengths) - 1))]:,}" for name, share in QUANTILES.items())
    console.print(f"[bold]tokens of a sequence[/]: {', '.join(told)}")
    console.print(f"[bold]in all[/] {sum(lengths):,} tokens, {trained:,} of them trained")


def print_cuts(console: Console, encoded: Encoded, renderer: Renderer, options: Encoding, limit: int) -> None:
    """Every way to treat over-long rows, by what it would do."""
    from dataclasses import replace

    from aurify.data.encode import encode, longest_side

    both = zip(encoded.examples, encoded.units, strict=True)
    above = [example for example, unit in both if longest_side(unit) > limit]
    console.print(f"[bold]above {limit} tokens[/]: {len(above):,}")
    for how in ("drop", "cut_left", "cut_right") if above else ():
        tally = encode(above, renderer, replace(options, overlong=how, limit=limit)).tally
        console.print(f"  overlong: {how}: {tally.cut.total():,} cut, {tally.dropped.total():,} dropped")


def print_findings(console: Console, tally: Tally) -> None:
    """Each with its first row, and with what a recipe can say for all such rows."""
    for title, counts in (("changed", tally.changed), ("noted", tally.noted), ("rejected", tally.rejected)):
        if counts or title == "rejected":
            console.print(f"[bold]{title}[/]: {counts.total():,}")
        for reason, num in counts.most_common():
            console.print(f"  {num:,} x {reason}", markup=False)
            console.print(f"      the first: {tally.first[reason]}", markup=False, style="dim")
            if reason in tally.options:
                console.print(f"      for all of them: {tally.options[reason]}", markup=False, style="dim")
    if tally.rejected:
        console.print("A stage stops at the first of them; data.on_bad_row: skip leaves them out and counts them.")

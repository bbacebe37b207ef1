"""`aurify data inspect`: what a file or data set holds, before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from aurify.data.formats import Encoded, Encoding
    from aurify.data.sources import Row
    from aurify.renderer import Renderer
    from aurify.types import Datum

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
DEFAULT = "smollm2-135m-instruct"
data = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")


@data.callback()
def group() -> None:
    """Look at data before training on it."""


@data.command()
def inspect(
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
    from dataclasses import replace

    from rich.console import Console
    from rich.markup import escape

    from aurify import config
    from aurify.data.formats import Encoding
    from aurify.data.reading import Part, iter_part
    from aurify.data.tally import Tally
    from aurify.errors import UserError
    from aurify.models.model import load_tokenizer
    from aurify.renderer import Renderer

    console = Console(soft_wrap=True, highlight=False)
    source = {"path": path, "split": split, "subset": subset, "max_rows": max_rows, "form": form}
    unread = Tally()
    with Console(stderr=True).status(f"reading {path} ..."):
        rows = list(iter_part(config.build(Part, source, "options"), unread, skip_bad=True))
        if not rows:
            raise UserError(f"{path}: no row can be read: {'; '.join(unread.lines()) or 'there is none'}")
        model = model or default_model()
        renderer = Renderer(load_tokenizer(model), tools_as_text=tools_as_text)
        lesson = learn or lesson_of(rows, form)
        values = {"lesson": lesson, "train_on": train_on, "form": form}
        options = config.build(Encoding, {**values, "on_bad_row": "skip"}, "options")
        encoded, renderer = encode(rows, renderer, options, console)
    encoded.tally.add(unread)
    tell_form(console, path, encoded)
    console.print(f"[bold]tokens by[/] {model}", markup=True)
    for place, unit in list(zip(encoded.places, encoded.units, strict=True))[:num]:
        console.print()
        console.print(f"--- {place}", markup=False, style="dim")
        for name, datum in zip(names_of(unit), unit, strict=True):
            console.print(f"[dim]{name}[/]", end="")
            console.print(marked(renderer, datum, colour=console.color_system is not None))
    console.print()
    tell_lengths(console, encoded)
    if max_length is not None:
        tell_cuts(console, rows, encoded, renderer, replace(options, limit=max_length))
    for reason, changed in encoded.tally.tidied.items():
        console.print(f"[bold]changed[/]: {changed:,}: {escape(reason)}")
    tell_rejected(console, encoded)


def default_model() -> str:
    """A tokenizer that costs no download."""
    from aurify.models import catalog

    known = catalog.KNOWN.get(DEFAULT)
    return DEFAULT if known is not None and catalog.is_cached(known) else "random:tiny"


def lesson_of(rows: list[Row], form: str | None) -> str:
    """What the rows hold, as they are."""
    from aurify.data.detect import detect

    return cast(str, detect(rows, None, form).lesson)


def encode(rows: list[Row], renderer: Renderer, options: Encoding, console: Console) -> tuple[Encoded, Renderer]:
    """A template without tools is told of, and tools are then written as text: there is something to see."""
    from aurify.data.formats import encode_rows
    from aurify.errors import UserError
    from aurify.renderer import Renderer

    try:
        return encode_rows(rows, renderer, options), renderer
    except UserError as error:
        if "set tools_as_text" not in str(error):
            raise
        console.print(f"[yellow]{str(error).split('; ')[0].partition(': ')[2]}: shown with tools_as_text[/]")
        renderer = Renderer(renderer.tokenizer, tools_as_text=True)
        return encode_rows(rows, renderer, options), renderer


def tell_form(console: Console, path: str, encoded: Encoded) -> None:
    from rich.markup import escape

    from aurify.data.detect import ONES
    from aurify.data.tally import rows

    found = encoded.detected
    assert found is not None
    console.print(f"[bold]{escape(path)}[/]: {rows(encoded.tally.num_rows)}")
    console.print(
        f"[bold]recognised as[/] {escape(found.line())}, by {found.num} of the first {rows(found.num_looked_at)}"
    )
    console.print(f"[bold]a method learns[/] {ONES[found.lesson]} from it: {len(encoded.units):,} usable")


def names_of(unit: tuple[Datum, ...]) -> list[str]:
    if len(unit) == 2:
        return ["chosen: ", "rejected: "]
    return ["undesirable: " if unit[0].label < 0 else ""]


def marked(renderer: Renderer, datum: Datum, *, colour: bool) -> Text:
    """The text with special tokens. What is trained is green, or in double brackets where there is no colour."""
    from rich.text import Text

    from aurify.cli.plan import runs_of

    text = Text()
    for tokens, trained in runs_of(datum):
        written = renderer.tokenizer.decode(tokens)
        if trained and not colour:
            written = f"[[{written}]]"
        text.append(written, style="green" if trained else "dim")
    return text


def tell_lengths(console: Console, encoded: Encoded) -> None:
    lengths = sorted(len(datum.tokens) for unit in encoded.units for datum in unit)
    trained = [sum(weight > 0 for weight in datum.weights) for unit in encoded.units for datum in unit]
    if not lengths:
        return
    names = ("shortest", "10%", "median", "90%", "99%", "longest")
    values = [lengths[round(share * (len(lengths) - 1))] for share in QUANTILES]
    told = ", ".join(f"{name} {value:,}" for name, value in zip(names, values, strict=True))
    console.print(f"[bold]tokens of a sequence[/]: {told}")
    console.print(f"[bold]in all[/] {sum(lengths):,} tokens, {sum(trained):,} of them trained")


def tell_cuts(console: Console, rows: list[Row], encoded: Encoded, renderer: Renderer, options: Encoding) -> None:
    """Every way to treat over-long rows, by what it would do."""
    from dataclasses import replace

    from aurify.data.formats import encode_rows
    from aurify.data.overlong import longest

    assert options.limit is not None and encoded.detected is not None
    both = zip(encoded.places, encoded.units, strict=True)
    above = {place for place, unit in both if longest(unit) > options.limit}
    console.print(f"[bold]above {options.limit} tokens[/]: {len(above):,}")
    chosen = [row for row in rows if row.place in above]
    for how in ("drop", "cut_left", "cut_right") if chosen else ():
        treated = replace(options, overlong=how, form=encoded.detected.form.name)
        tally = encode_rows(chosen, renderer, treated).tally
        console.print(f"  overlong: {how}: {tally.cut.total():,} cut, {tally.dropped.total():,} dropped")


def tell_rejected(console: Console, encoded: Encoded) -> None:
    tally = encoded.tally
    console.print(f"[bold]rejected[/]: {tally.rejected.total():,}")
    for reason, num in tally.rejected.most_common():
        console.print(f"  {num:,} x {reason}", markup=False)
        console.print(f"      the first: {tally.first[reason]}", markup=False, style="dim")
    if tally.rejected:
        console.print("A stage stops at the first of them; data.on_bad_row: skip leaves them out and counts them.")

"""Rows into data to train on: the form of the rows is found (`detect`), each row is read (`shapes`), and rendered.

Answers become one `Datum` each; of a preference pair both sides, next to each other and one unit; an answer with a
label carries it as +1 or -1. A row that cannot be used is an error that names it, or is counted (`Tally`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aurify.data.detect import Detected, context, detect
from aurify.data.overlong import Overlong, longest, shortened
from aurify.data.pairs import Pair
from aurify.data.shapes import Chat, Example, Label, Text
from aurify.data.sources import Row
from aurify.data.tally import BadRow, Tally
from aurify.errors import UserError
from aurify.renderer import Renderer, TrainOn
from aurify.types import Datum, Lesson, Message

Unit = tuple[Datum, ...]
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How rows become tokens."""

    lesson: Lesson = "answers"
    train_on: TrainOn = "assistant"
    limit: int | None = None  # tokens of one sequence
    overlong: Overlong = "error"
    on_bad_row: OnBadRow = "error"
    form: str | None = None  # None: found by what is in the rows


@dataclass
class Encoded:
    units: list[Unit] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # of each unit
    tally: Tally = field(default_factory=Tally)
    detected: Detected | None = None


def placed(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows that were made in memory get their number as their place."""
    return (row if isinstance(row, Row) else Row(row, f"row {number}") for number, row in enumerate(rows, 1))


def encode_rows(rows: Sequence[Mapping[str, Any]], renderer: Renderer, options: Encoding) -> Encoded:
    """The units of all rows of one source."""
    result = Encoded(detected=detect(rows, options.lesson, options.form))
    assert result.detected is not None
    for row in placed(rows):
        result.tally.num_rows += 1
        try:
            for example in result.detected.read(row):
                unit = fitting(row, example, renderer, options, result.tally)
                if unit is not None:
                    result.units.append(numbered(unit, len(result.units)))
                    result.places.append(row.place)
        except BadRow as error:
            if options.on_bad_row == "error":
                raise
            result.tally.reject(error)
    return result


def fitting(row: Row, example: Example, renderer: Renderer, options: Encoding, tally: Tally) -> Unit | None:
    """The tokens of an example, cut or left out where they are too many."""

    def encode(example: Example) -> Unit:
        return unit_of(row, example, renderer, options)

    unit, limit = encode(example), options.limit
    if limit is None or longest(unit) <= limit:
        return unit
    if options.overlong == "error":
        raise UserError(
            f"{row.place}: the row has {longest(unit)} tokens; at most {limit} fit (max_length, or the model's "
            "context). Raise max_length, shorten the row, or set `overlong: drop` to leave such rows out"
        )
    cut: Unit | None
    if isinstance(example, Text) and options.overlong != "drop":
        cut = (cut_text(unit[0], limit, options.overlong),)
    else:
        cut = shortened(example, encode, limit, options.overlong)
    if cut is not None:
        tally.cut[f"above {limit} tokens, {options.overlong}"] += 1
    elif options.overlong == "drop":
        tally.dropped[f"above {limit} tokens"] += 1
    else:
        tally.dropped[f"above {limit} tokens, and no message could be cut off"] += 1
    return cut


def cut_text(datum: Datum, limit: int, how: Overlong) -> Datum:
    """Plain text has no messages to cut at."""
    part = slice(-limit, None) if how == "cut_left" else slice(limit)
    return replace(datum, tokens=datum.tokens[part], weights=[0.0, *datum.weights[part][1:]])


def unit_of(row: Row, example: Example, renderer: Renderer, options: Encoding) -> Unit:
    if isinstance(example, Text):
        return (Datum(*renderer.text(example.text)),)
    if isinstance(example, Chat):
        if not example.messages:
            raise row.bad("a conversation without messages")
        return (Datum(*rendered(row, example.messages, example.tools, renderer, options.train_on)),)
    if isinstance(example, Label):
        tokens = answered(row, example.prompt, example.completion, example.tools, renderer)
        return (Datum(*tokens, label=1.0 if example.desirable else -1.0),)
    assert isinstance(example, Pair)
    both = [answered(row, example.prompt, side, example.tools, renderer) for side in (example.chosen, example.rejected)]
    return tuple(Datum(*tokens, margin=example.margin, unit=0) for tokens in both)


def answered(
    row: Row,
    prompt: list[Message],
    completion: list[Message],
    tools: list[dict[str, Any]],
    renderer: Renderer,
) -> tuple[list[int], list[float]]:
    """A completion of one or several turns; nothing of the prompt is trained, however often the assistant spoke."""
    train: TrainOn = "last" if len(completion) == 1 else "assistant"
    return rendered(row, [*context(prompt), *completion], tools, renderer, train)


def rendered(
    row: Row,
    messages: list[Message],
    tools: list[dict[str, Any]],
    renderer: Renderer,
    train: TrainOn,
) -> tuple[list[int], list[float]]:
    try:
        return renderer.conversation(messages, tools, train=train)
    except UserError as error:
        text = str(error)
        kind = "no assistant message to train on" if text.startswith("no assistant") else "the chat template refuses it"
        if "leaves out" in text:
            raise UserError(f"{row.place}: {error}") from error  # true of every such row: it is no single row's fault
        raise row.bad(text, kind) from error


def numbered(unit: Unit, number: int) -> Unit:
    return tuple(replace(datum, unit=number) for datum in unit) if len(unit) > 1 else unit


def sft_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer, train: TrainOn = "assistant") -> list[Datum]:
    """Answers to imitate, of rows in any form."""
    units = encode_rows(rows, renderer, Encoding(lesson="answers", train_on=train)).units
    return [datum for unit in units for datum in unit]


def preference_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Chosen and rejected of a pair stand next to each other and are one unit; both begin with the same tokens."""
    return [datum for unit in encode_rows(rows, renderer, Encoding(lesson="pairs")).units for datum in unit]


def label_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Answers with labels, +1 desirable and -1 undesirable; a pair gives one of each."""
    return [datum for unit in encode_rows(rows, renderer, Encoding(lesson="labels")).units for datum in unit]

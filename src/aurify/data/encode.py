"""Examples into data to train on. An answer becomes one `Datum`; both sides of a preference pair are one unit, next to
each other; an answer with a label carries it as +1 or -1.

An example above the limit of tokens is an error, is dropped, or is cut where a message ends: from the left (the oldest
turns) or from the right. System prompts stay, and an answer is never cut in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aurify.data.example import Chat, Example, Label, Pair, Text, as_context
from aurify.data.forms import Reader, detect
from aurify.errors import UserError
from aurify.renderer import Renderer, TrainOn
from aurify.rows.row import BadRow, Row, Tally
from aurify.types import Datum, Lesson, Message

Unit = tuple[Datum, ...]
OnBadRow = Literal["error", "skip"]
Overlong = Literal["error", "drop", "cut_left", "cut_right"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How examples become tokens."""

    train_on: TrainOn = "assistant"
    limit: int | None = None  # tokens of one sequence
    overlong: Overlong = "error"
    on_bad_row: OnBadRow = "error"


@dataclass
class Encoded:
    units: list[Unit] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)  # of each unit
    tally: Tally = field(default_factory=Tally)


def encode(examples: Sequence[Example], renderer: Renderer, options: Encoding) -> Encoded:
    """The units of all examples of one source."""
    result = Encoded()
    for example in examples:
        try:
            unit = fit(example, renderer, options, result.tally)
        except BadRow as error:
            if options.on_bad_row == "error":
                raise
            result.tally.reject(error.kind, str(error))
            continue
        if unit is not None:
            result.units.append(number_unit(unit, len(result.units)))
            result.examples.append(example)
    return result


def number_unit(unit: Unit, number: int) -> Unit:
    return tuple(replace(datum, unit=number) for datum in unit) if len(unit) > 1 else unit


def longest(unit: Unit) -> int:
    return max(len(datum.tokens) for datum in unit)


# ---------------------------------------------------------------------- tokens


def build_unit(example: Example, renderer: Renderer, options: Encoding) -> Unit:
    if isinstance(example, Text):
        return (Datum(*renderer.text(example.text)),)
    if isinstance(example, Chat):
        if not example.messages:
            raise BadRow(example.location, "a conversation without messages")
        return (Datum(*render(example, example.messages, renderer, options.train_on)),)
    if isinstance(example, Label):
        tokens = render_completion(example, example.prompt, example.completion, renderer)
        return (Datum(*tokens, label=1.0 if example.desirable else -1.0),)
    sides = (render_completion(example, example.prompt, side, renderer) for side in (example.chosen, example.rejected))
    return tuple(Datum(*tokens, margin=example.margin, unit=0) for tokens in sides)


def render_completion(
    example: Example, prompt: list[Message], completion: list[Message], renderer: Renderer
) -> tuple[list[int], list[float]]:
    """A completion of one or several turns; nothing of the prompt is trained, however often the assistant spoke."""
    train: TrainOn = "last" if len(completion) == 1 else "assistant"
    return render(example, [*as_context(prompt), *completion], renderer, train)


def render(
    example: Example, messages: list[Message], renderer: Renderer, train: TrainOn
) -> tuple[list[int], list[float]]:
    try:
        return renderer.conversation(messages, example.tools, train=train)
    except UserError as error:
        text = str(error)
        if "leaves out" in text:  # true of every such row: it is no single row's fault
            raise UserError(f"{example.location}: {error}") from error
        kind = "no assistant message to train on" if text.startswith("no assistant") else "the chat template refuses it"
        raise BadRow(example.location, text, kind) from error


# ---------------------------------------------------------------------- lengths


def fit(example: Example, renderer: Renderer, options: Encoding, tally: Tally) -> Unit | None:
    """The tokens of an example, cut or left out where they are too many."""
    unit, limit = build_unit(example, renderer, options), options.limit
    if limit is None or longest(unit) <= limit:
        return unit
    if options.overlong == "error":
        raise UserError(
            f"{example.location}: the row has {longest(unit)} tokens; at most {limit} fit (max_length, or the model's "
            "context). Raise max_length, shorten the row, or set `overlong: drop` to leave such rows out"
        )
    if options.overlong == "drop":
        tally.dropped[f"above {limit} tokens"] += 1
        return None
    cut = (
        cut_text(unit[0], limit, options.overlong)
        if isinstance(example, Text)
        else cut_messages(example, renderer, options)
    )
    if cut is None:
        tally.dropped[f"above {limit} tokens, and no message could be cut off"] += 1
    else:
        tally.cut[f"above {limit} tokens, {options.overlong}"] += 1
    return cut


def cut_text(datum: Datum, limit: int, how: Overlong) -> Unit:
    """Plain text has no messages to cut at."""
    part = slice(-limit, None) if how == "cut_left" else slice(limit)
    return (replace(datum, tokens=datum.tokens[part], weights=[0.0, *datum.weights[part][1:]]),)


def cut_messages(example: Example, renderer: Renderer, options: Encoding) -> Unit | None:
    """The longest shorter form that fits; None where there is none."""
    assert options.limit is not None
    forms = shorten(example, options.overlong)
    low, high = 0, len(forms)  # forms get shorter: the first that fits
    while low < high:
        middle = (low + high) // 2
        if longest(build_unit(forms[middle], renderer, options)) <= options.limit:
            high = middle
        else:
            low = middle + 1
    return build_unit(forms[low], renderer, options) if low < len(forms) else None


def shorten(example: Example, how: Overlong) -> list[Example]:
    """The shorter forms of an example, the longest first. Pairs and labels can only lose the beginning of a prompt."""
    if isinstance(example, Chat):
        kinds = drop_oldest(example.messages) if how == "cut_left" else drop_newest(example.messages)
        return [replace(example, messages=messages) for messages in kinds]
    if isinstance(example, (Pair, Label)) and how == "cut_left":
        return [replace(example, prompt=messages) for messages in drop_oldest(example.prompt)]
    return []


def drop_oldest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left begins with a user's message, after the system prompt."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [k for k in range(len(system) + 1, len(messages)) if messages[k]["role"] == "user"]
    return [[*system, *messages[start:]] for start in starts]


def drop_newest(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left ends with an assistant's message that calls no tool: whoever calls one must see what it gave."""
    ends = [k for k in range(len(messages) - 2, 0, -1) if messages[k]["role"] == "assistant"]
    return [list(messages[: end + 1]) for end in ends if not messages[end].get("tool_calls")]


# ---------------------------------------------------------------------- rows in memory


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    options: Encoding,
    lesson: Lesson = "answers",
    reader: Reader | None = None,
) -> Encoded:
    """Reads and encodes rows in any form. reader: where their form is known."""
    located = [row if isinstance(row, Row) else Row(row, f"row {number}") for number, row in enumerate(rows, 1)]
    reader, tally = reader or detect(located, lesson), Tally()
    result = encode(reader.read_all(located, tally, skip_bad=options.on_bad_row == "skip"), renderer, options)
    tally.add(result.tally)
    return replace(result, tally=tally)


def sft_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer, train: TrainOn = "assistant") -> list[Datum]:
    """Answers to imitate, of rows in any form."""
    return flatten(encode_rows(rows, renderer, Encoding(train_on=train)))


def preference_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Chosen and rejected of a pair stand next to each other and are one unit; both begin with the same tokens."""
    return flatten(encode_rows(rows, renderer, Encoding(), "pairs"))


def label_data(rows: Sequence[Mapping[str, Any]], renderer: Renderer) -> list[Datum]:
    """Answers with labels, +1 desirable and -1 undesirable; a pair gives one of each."""
    return flatten(encode_rows(rows, renderer, Encoding(), "labels"))


def flatten(encoded: Encoded) -> list[Datum]:
    return [datum for unit in encoded.units for datum in unit]

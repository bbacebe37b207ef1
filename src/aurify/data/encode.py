"""Examples into data to train on. An answer becomes one `Datum`; both sides of a preference pair are one unit, next to
each other; an answer with a label carries it as +1 or -1. An example with too many tokens is an error, is dropped or
cut where a message ends: from the left (the oldest turns) or from the right. System prompts stay, and no answer is cut
in itself."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aurify.data.example import (
    Chat,
    Example,
    Label,
    Pair,
    Text,
    as_untrained_messages,
    list_example_messages,
    map_example_messages,
)
from aurify.data.forms import Reader, detect_row_form
from aurify.data.prompts import comparable_message
from aurify.data.reading import ALIKE
from aurify.errors import UserError
from aurify.renderer import Renderer, TrainOn
from aurify.renderer.foreign import BEGIN_TEXTS
from aurify.rows.files import build_row
from aurify.rows.row import SKIP, BadRow, Row, Tally
from aurify.rows.sources import raise_bad_row
from aurify.types import Datum, Lesson, Message

Unit = tuple[Datum, ...]
STRIPPED = "an end token after an answer, or one that begins a text, was taken off: it is written anyway"
FOREIGN = "control tokens of the model in a text are ordinary characters; a written-out conversation needs messages"
SPLIT = (
    "a map of yours that splits the text into messages, or "
    "filters: [{name: matches, column: ..., pattern: ..., without: true}] leaves such rows out"
)
OnBadRow = Literal["error", "skip"]
Overlong = Literal["error", "drop", "cut_left", "cut_right"]
# words of the renderer's error -> why a row is refused, and what a recipe can say to mend all such rows
REFUSALS = (
    ("no assistant message", "no assistant message to train on", SKIP),
    ("leaves out", "the chat template leaves out a message", SKIP),
    ("train_on: last", "the chat template rewrites earlier turns", "train_on: last trains the last answer alone"),
    (
        "opens a thought",
        "an answer without a thought, where the chat template opens one",
        "maps: [empty_thoughts] gives such answers an empty one",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How examples become tokens."""

    train_on: TrainOn = "assistant"
    limit: int | None = None  # tokens of one sequence
    vocabulary: int | None = None  # rows of the model's embedding
    overlong: Overlong = "error"
    on_bad_row: OnBadRow = "error"


@dataclass
class Encoded:
    units: list[Unit] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)  # of each unit
    tally: Tally = field(default_factory=Tally)


def encode(examples: Iterable[Example], renderer: Renderer, options: Encoding) -> Encoded:
    """The units of all examples of one source."""
    result = Encoded()
    for given in examples:
        example = strip_example_frame(given, renderer, result.tally)
        try:
            check_example_sides(example)
            unit = fit_example(example, renderer, options, result.tally)
        except BadRow as error:
            if options.on_bad_row == "error":
                raise
            result.tally.reject(error.kind, str(error), error.option)
            continue
        if unit is not None:
            number = len(result.units)
            result.units.append(tuple(replace(datum, unit=number) for datum in unit) if len(unit) > 1 else unit)
            result.examples.append(example)
    return result


def strip_example_frame(example: Example, renderer: Renderer, tally: Tally) -> Example:
    """Without tokens that the tokenizer or the chat template writes around texts itself. Other control tokens are
    told: in a text they become ordinary characters."""

    def strip(messages: list[Message]) -> list[Message]:
        said = [renderer.strip_end(m["content"]) if m["role"] == "assistant" else m["content"] for m in messages]
        said[:1] = map(renderer.strip_beginning, said[:1])
        return [{**message, "content": text} for message, text in zip(messages, said, strict=True)]

    if isinstance(example, Text):
        begun = next((begin for begin in BEGIN_TEXTS if example.text.startswith(begin)), "")
        text = renderer.strip_end(renderer.strip_beginning(example.text.removeprefix(begun)))
        stripped: Example = replace(example, text=text)
        texts = [("", text)]
    else:
        stripped = map_example_messages(example, strip)
        texts = [(message["role"], message["content"]) for message in list_example_messages(stripped)]
    if stripped != example:
        tally.change(example.location, [STRIPPED])
    hidden = renderer.template.patterns
    if any(hidden.get(role, hidden[""]).search(text) for role, text in texts):
        tally.note(example.location, FOREIGN, SPLIT)
    return stripped


def check_example_sides(example: Example) -> None:
    if isinstance(example, Pair) and list(map(comparable_message, example.chosen)) == list(
        map(comparable_message, example.rejected)
    ):
        raise BadRow(example.location, ALIKE)


def longest_side(unit: Unit) -> int:
    return max(len(datum.tokens) for datum in unit)


# ---------------------------------------------------------------------- tokens


def encode_unit(example: Example, renderer: Renderer, options: Encoding) -> Unit:
    if isinstance(example, Text):
        return (Datum(*renderer.text(example.text)),)
    if isinstance(example, Chat):
        if not example.messages:
            raise BadRow(example.location, "a conversation without messages")
        return (Datum(*encode_messages(example, example.messages, renderer, options.train_on)),)
    if isinstance(example, Label):
        tokens = encode_completion(example, example.prompt, example.completion, renderer)
        return (Datum(*tokens, label=1.0 if example.desirable else -1.0),)
    sides = (encode_completion(example, example.prompt, side, renderer) for side in (example.chosen, example.rejected))
    return tuple(Datum(*tokens, margin=example.margin, unit=0) for tokens in sides)


def encode_completion(
    example: Example, prompt: list[Message], completion: list[Message], renderer: Renderer
) -> tuple[list[int], list[float]]:
    """A completion of one or several turns; nothing of the prompt is trained, however often the assistant spoke."""
    train: TrainOn = "last" if len(completion) == 1 else "assistant"
    return encode_messages(example, [*as_untrained_messages(prompt), *completion], renderer, train)


def encode_messages(
    example: Example, messages: list[Message], renderer: Renderer, train: TrainOn
) -> tuple[list[int], list[float]]:
    try:
        return renderer.conversation(messages, example.tools, train=train)
    except UserError as error:
        text = str(error)
        if "tools_as_text" in text:  # true of every row with tools: it is no single row's fault
            raise UserError(f"{example.location}: {error}") from error
        refused = ("", "the chat template refuses it", SKIP)
        _, kind, option = next((reason for reason in REFUSALS if reason[0] in text), refused)
        raise BadRow(example.location, text, kind, option) from error


# ---------------------------------------------------------------------- lengths


def fit_example(example: Example, renderer: Renderer, options: Encoding, tally: Tally) -> Unit | None:
    """The tokens of an example, cut or left out where they are too many."""
    unit, limit = encode_unit(example, renderer, options), options.limit
    check_example_tokens(example, unit, renderer, options.vocabulary)
    if limit is None or longest_side(unit) <= limit:
        return unit
    if options.overlong == "error":
        raise UserError(
            f"{example.location}: the row has {longest_side(unit)} tokens; at most {limit} fit (max_length, or the "
            "model's context). Raise max_length, shorten the row, or set `overlong: drop` to leave such rows out"
        )
    if options.overlong == "drop":
        tally.dropped[f"above {limit} tokens"] += 1
        return None
    if isinstance(example, Text):
        cut: Unit | None = (cut_example_text(unit[0], limit, options.overlong),)
    else:
        cut = cut_example_messages(example, renderer, options)
    if cut is None:
        tally.dropped[f"above {limit} tokens, and no message could be cut off"] += 1
    else:
        tally.cut[f"above {limit} tokens, {options.overlong}"] += 1
    return cut


def check_example_tokens(example: Example, unit: Unit, renderer: Renderer, vocabulary: int | None) -> None:
    token = max(max(datum.tokens) for datum in unit)
    if vocabulary is not None and token >= vocabulary:
        text = renderer.tokenizer.convert_ids_to_tokens(token)
        raise BadRow(
            example.location,
            f"a text holds {text!r}, which is token {token}; the model's embedding has {vocabulary} rows. Take it out, "
            "or add rows: model.resize_token_embeddings(len(tokenizer)), and save the model",
            "a token without an embedding",
        )


def cut_example_messages(example: Example, renderer: Renderer, options: Encoding) -> Unit | None:
    """The longest shorter form that fits; None where there is none."""
    limit, forms = options.limit, shorten_example(example, options.overlong)
    assert limit is not None
    index = bisect_left(forms, True, key=lambda form: longest_side(encode_unit(form, renderer, options)) <= limit)
    return encode_unit(forms[index], renderer, options) if index < len(forms) else None


def cut_example_text(datum: Datum, limit: int, how: Overlong) -> Datum:
    """Plain text has no messages to cut at."""
    part = slice(-limit, None) if how == "cut_left" else slice(limit)
    return replace(datum, tokens=datum.tokens[part], weights=[0.0, *datum.weights[part][1:]])


def shorten_example(example: Example, how: Overlong) -> list[Example]:
    """The shorter forms of an example, the longest first. Pairs and labels can only lose the beginning of a prompt."""
    if isinstance(example, Chat):
        kinds = drop_oldest_messages(example.messages) if how == "cut_left" else drop_newest_messages(example.messages)
        return [replace(example, messages=messages) for messages in kinds]
    if isinstance(example, (Pair, Label)) and how == "cut_left":
        return [replace(example, prompt=messages) for messages in drop_oldest_messages(example.prompt)]
    return []


def drop_oldest_messages(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left begins with a user's message, after the system prompt."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [k for k in range(len(system) + 1, len(messages)) if messages[k]["role"] == "user"]
    return [[*system, *messages[start:]] for start in starts]


def drop_newest_messages(messages: Sequence[Message]) -> list[list[Message]]:
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
    located = [
        row if isinstance(row, Row) else raise_bad_row(build_row(row, f"row {number}"))
        for number, row in enumerate(rows, 1)
    ]
    reader, tally = reader or detect_row_form(located, lesson), Tally()
    result = encode(reader.read_all(located, tally, skip_bad=options.on_bad_row == "skip"), renderer, options)
    tally.add(result.tally)
    return replace(result, tally=tally)


def encode_data(
    rows: Sequence[Mapping[str, Any]], renderer: Renderer, lesson: Lesson = "answers", train_on: TrainOn = "assistant"
) -> list[Datum]:
    """Rows in any form as data to train on. The first that cannot be used is an error."""
    units = encode_rows(rows, renderer, Encoding(train_on=train_on), lesson).units
    return [datum for unit in units for datum in unit]

"""How a row of each form is read. `columns` says which column of the file holds what: see aurify.data.forms."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from aurify.data.calls import read_declared_calls, read_offered_tools
from aurify.data.example import Chat, Label, Pair, Text
from aurify.data.messages import read_chat_column
from aurify.data.prompts import (
    Columns,
    add_system_column,
    add_thought_column,
    begins_with_prompt,
    comparable_message,
    continues_transcript,
    read_chat_or_transcript,
    read_completion_column,
    read_prompt_column,
    strip_prompt_from_pair,
)
from aurify.data.transcripts import read_glaive, read_glaive_system
from aurify.renderer.foreign import list_rendered_strings
from aurify.rows.columns import CHOICES, LABEL, MEDIA, RATING, find_column
from aurify.rows.row import SKIP, Row, is_missing_value
from aurify.rows.values import parse_json_value
from aurify.tools.calls import looks_like_call
from aurify.types import Message

TRUE = (
    *("true", "t", "yes", "y", "1", "1.0", "+1", "desirable", "good", "chosen", "positive", "correct", "pass", "liked"),
    *("up", "thumbs_up", "\N{THUMBS UP SIGN}"),
)
FALSE = (
    *("false", "f", "no", "n", "0", "0.0", "-1", "-1.0", "undesirable", "bad", "rejected", "negative", "incorrect"),
    *("wrong", "fail", "disliked", "down", "thumbs_down", "\N{THUMBS DOWN SIGN}"),
)
EQUAL = "chosen and rejected are the same text; nothing can be learned from it"
ALIKE = "chosen and rejected differ by white space alone, or by what nobody sees; nothing can be learned from it"
DROP_LABEL = (
    "maps: [{{name: rename, columns: {{{label}: good}}}}] with filters: [{{name: equals, column: good, value: true}}] "
    "learns from the good ones, maps: [{{name: drop, columns: [{label}]}}] from all"
)
NO_PROMPT = "chosen and rejected share no prompt; begin both with it, or give it a column 'prompt'"


def check_columns_read(row: Row, columns: Columns) -> None:
    """Refuses a row with a column that changes what it means and that nobody reads."""
    for column in MEDIA:
        if column not in columns.values() and not is_missing_value(row.get(column)):
            raise row.bad(
                f"column {column!r} holds what belongs to the text, and only text is trained; remove such rows",
                f"column {column!r}: pictures, sound and film are not trained",
                f"maps: [{{name: drop, columns: [{column}]}}] trains the text alone, or {SKIP}",
            )
    if "parent_id" in row and "text" in columns:
        problem = "column 'parent_id' says that the row is one message of a conversation"
        raise row.bad(f"{problem}; join the messages of each conversation to a list 'messages'", problem)
    settings = row.get("chat_template_kwargs")
    if isinstance(settings, Mapping) and (given := {k: v for k, v in settings.items() if not is_missing_value(v)}):
        raise row.bad(
            f"column 'chat_template_kwargs' is {str(given)[:60]}, which nobody reads; write it into the messages",
            "column 'chat_template_kwargs' has variables of the chat template for single rows",
            f"maps: [{{name: drop, columns: [chat_template_kwargs]}}], template_options for all rows alike, or {SKIP}",
        )
    label = find_column(row, LABEL, str, bool, int, float)
    if label and not {"label", "text"} & {*columns} and not is_pair_row(row):
        raise row.bad(
            f"column {label!r} is {str(row[label])[:40]!r}, which may say that the answer is a bad one",
            f"column {label!r} may say that answers are bad ones",
            DROP_LABEL.format(label=label),
        )
    choices = find_column(row, CHOICES, list, dict) if "answer" in columns else None
    if choices and not prompt_names_choices(str(row.get(columns["prompt"])), row[choices]):
        raise row.bad(
            f"column {choices!r} holds choices that {columns['prompt']!r} does not name; write them into it",
            f"column {choices!r} holds choices that the prompt does not name",
            f"a map of your own that writes them into the prompt, maps: [{{name: drop, columns: [{choices}]}}] to go "
            f"without them, or {SKIP}",
        )


def is_pair_row(row: Row) -> bool:
    return "chosen" in row or "completions" in row


def prompt_names_choices(prompt: str, choices: list[Any] | dict[str, Any]) -> bool:
    given = list(choices.values()) if isinstance(choices, dict) else choices
    return all(text in prompt for text in list_rendered_strings(given))


# ---------------------------------------------------------------------- answers and labels


def read_chat_example(row: Row, columns: Columns) -> Chat:
    messages = read_chat_or_transcript(row, columns["messages"])
    if any(message["role"] == "assistant" and not is_said_message(message) for message in messages):
        raise row.bad("an assistant turn without text; fill it or remove the row", "an assistant turn without text")
    return Chat(add_system_column(row, columns, messages), tools=read_offered_tools(row))


def is_said_message(message: Message) -> bool:
    return bool(not is_missing_value(message["content"]) or message.get("tool_calls") or message.get("weight") == 0)


def read_glaive_example(row: Row, columns: Columns) -> Chat:
    messages, tools = read_glaive(row, columns["messages"]), list[dict[str, Any]]()
    if row.get(columns.get("system", "")):
        said, tools = read_glaive_system(row, columns["system"])
        messages.insert(0, {"role": "system", "content": said})
    return Chat(messages, tools=tools)


def read_answer_example(row: Row, columns: Columns) -> Chat:
    prompt, answer = read_prompt_and_completion(row, columns)
    return Chat([*prompt, *answer], tools=read_offered_tools(row))


def read_calls_column(value: Any) -> list[dict[str, Any]]:
    """xLAM's `answers`: the calls that answer a question, as JSON text."""
    calls = parse_json_value(value)
    return calls if isinstance(calls, list) and calls and all(map(looks_like_call, calls)) else []


def read_call_example(row: Row, columns: Columns) -> Chat:
    column = columns["calls"]
    calls = read_declared_calls(row, column, {"tool_calls": row.need(column)})
    if not calls:
        raise row.bad(f"column {column!r} holds no call of a tool", f"column {column!r} holds no call of a tool")
    return Chat(
        [*read_prompt_column(row, columns), {"role": "assistant", "content": "", "tool_calls": calls}],
        tools=read_offered_tools(row),
    )


def read_prompt_and_completion(row: Row, columns: Columns) -> tuple[list[Message], list[Message]]:
    """Prompt and answer."""
    prompt = read_prompt_column(row, columns)
    return prompt, add_thought_column(
        row, read_completion_column(row, columns["answer"], prompt, strip=continues_transcript(row, columns))
    )


def read_label_example(row: Row, columns: Columns) -> Label:
    """An answer with its prompt, or a chat that ends with the answer."""
    given, column = row.need(columns["label"]), columns["label"]
    desirable = parse_label_value(given)
    if desirable is None:
        problem = f"column {column!r} is {str(given)[:40]!r}; expected true or false"
        raise row.bad(problem, f"column {column!r} is no label")
    if "messages" not in columns:
        return Label(*read_prompt_and_completion(row, columns), desirable, tools=read_offered_tools(row))
    messages = read_chat_example(row, columns).messages
    if messages[-1]["role"] != "assistant":
        raise row.bad(f"{columns['messages']!r} ends without an answer that the label could judge")
    return Label(messages[:-1], messages[-1:], desirable, tools=read_offered_tools(row))


def parse_label_value(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def read_text_example(row: Row, columns: Columns) -> Text:
    return Text(row.text(columns["text"]))


# ---------------------------------------------------------------------- pairs


def read_pair_example(row: Row, columns: Columns) -> Pair:
    prompt, strip = read_prompt_column(row, columns), continues_transcript(row, columns)
    sides = [read_completion_column(row, side, prompt, strip=strip) for side in ("chosen", "rejected")]
    return build_pair_example(row, prompt, *strip_prompt_from_pair(row, prompt, sides))


def build_pair_example(row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Pair:
    if chosen == rejected:
        raise row.bad(EQUAL)
    if list(map(comparable_message, chosen)) == list(map(comparable_message, rejected)):
        raise row.bad(ALIKE)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if any(message["role"] == "assistant" and not is_said_message(message) for message in messages):
            problem = f"{name!r} holds an empty answer"
            raise row.bad(f"{problem}; fill it or remove the row", problem)
    return Pair(prompt, chosen, rejected, row.number("margin") or 0.0, tools=read_offered_tools(row))


def read_dialogue_pair(row: Row, columns: Columns) -> Pair:
    """Two whole conversations: the prompt is what both begin with, up to where the assistant answers differently. A
    prompt beside them must be part of it."""
    chosen, rejected = (read_chat_or_transcript(row, side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise row.bad(EQUAL)
    end = count_shared_beginning(list(map(comparable_message, chosen)), list(map(comparable_message, rejected)))
    while end > 0 and not all(end < len(side) and side[end]["role"] == "assistant" for side in (chosen, rejected)):
        end -= 1
    if end == 0:
        raise row.bad(NO_PROMPT)
    prompt, column = add_system_column(row, columns, chosen[:end]), columns.get("prompt", "")
    if isinstance(row.get(column), list):
        asked = read_chat_column(row, column)
        if not begins_with_prompt(chosen[:end], asked):
            problem = f"{column!r} holds messages with which chosen and rejected do not both begin"
            raise row.bad(f"{problem}; mend them", problem)
        if asked[0]["role"] == "system" != prompt[0]["role"]:
            prompt = [asked[0], *prompt]
    elif isinstance(row.get(column), str):
        text = row[column].strip()
        if not any(text == message["content"].strip() for message in chosen[:end]):
            problem = "which is not in what chosen and rejected share"
            raise row.bad(f"{column!r} is {text[:40]!r}, {problem}", f"{column!r} holds a text {problem}")
    return build_pair_example(row, prompt, chosen[end:], rejected[end:])


def count_shared_beginning(one: Any, other: Any) -> int:
    """How many elements both begin with."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def read_implicit_pair(row: Row, columns: Columns) -> Pair:
    """Two texts: the words that both begin with are the prompt."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if chosen == rejected:
        raise row.bad(EQUAL)
    end = count_shared_beginning(chosen, rejected)
    while end > 0 and not chosen[end - 1].isspace():  # no word is cut in two
        end -= 1
    prompt = chosen[:end].strip()
    if not prompt:
        raise row.bad(NO_PROMPT)
    best, worst = ([Message(role="assistant", content=text[end:].strip())] for text in (chosen, rejected))
    return build_pair_example(row, [{"role": "user", "content": prompt}], best, worst)


def read_rated_pair(row: Row, columns: Columns) -> Pair:
    """The best rated completion against the worst."""
    given = row.need("completions")
    if not isinstance(given, list):
        raise row.bad(f"'completions' holds {type(given).__name__}; expected a list of rated completions")
    entries = [entry for entry in given if isinstance(entry, Mapping) and read_completion_rating(entry) is not None]
    if len({read_completion_rating(entry) for entry in entries}) < 2:
        raise row.bad("no two completions with different ratings")
    chosen = [pick(entries, key=lambda entry: read_completion_rating(entry) or 0.0) for pick in (max, min)]
    best, worst = (str(entry.get("response", "")) for entry in chosen)
    return read_pair_example(Row({**row, "chosen": best, "rejected": worst}, row.location), columns)


def read_completion_rating(entry: Mapping[str, Any]) -> float | None:
    """The first rating that is a number."""
    ratings = (entry.get(name) for name in RATING)
    return next((float(r) for r in ratings if isinstance(r, (int, float)) and not isinstance(r, bool)), None)

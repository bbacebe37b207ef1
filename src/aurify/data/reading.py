"""How a row of each form is read. `columns` says which column of the file holds what: see aurify.data.forms."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from aurify.data.example import Chat, Label, Pair, Text
from aurify.data.messages import read_tools
from aurify.data.prompts import (
    Columns,
    comparable,
    read_completion,
    read_conversation,
    read_prompt,
    take_off_prompt,
    with_system,
    with_thought,
)
from aurify.data.transcripts import is_hh, read_glaive, read_glaive_system
from aurify.renderer.foreign import strings_in
from aurify.rows.columns import CHOICES, MEDIA, RATING, find_column
from aurify.rows.row import SKIP, Row, is_missing
from aurify.types import Message

TRUE, FALSE = ("true", "1", "1.0", "+1", "desirable", "yes"), ("false", "0", "0.0", "-1", "undesirable", "no")
EQUAL = "chosen and rejected are the same text; nothing can be learned from it"
ALIKE = "chosen and rejected differ by white space alone; nothing can be learned from it"
NO_PROMPT = "chosen and rejected share no prompt"


def check_read(row: Row, columns: Columns) -> None:
    """Refuses a row with a column that changes what it means and that nobody reads."""
    for column in MEDIA:
        if column not in columns.values() and not is_missing(row.get(column)):
            raise row.bad(
                f"column {column!r} holds what belongs to the text, and only text is trained; remove such rows",
                f"column {column!r}: pictures, sound and film are not trained",
                f"maps: [{{name: drop, columns: [{column}]}}] trains the text alone, or {SKIP}",
            )
    choices = find_column(row, CHOICES, list, dict) if "answer" in columns else None
    if choices and not names_all(str(row.get(columns["prompt"])), row[choices]):
        raise row.bad(
            f"column {choices!r} holds choices that {columns['prompt']!r} does not name; write them into it",
            f"column {choices!r} holds choices that the prompt does not name",
            f"a map of your own that writes them into the prompt, maps: [{{name: drop, columns: [{choices}]}}] to go "
            f"without them, or {SKIP}",
        )


def names_all(prompt: str, choices: list[Any] | dict[str, Any]) -> bool:
    given = list(choices.values()) if isinstance(choices, dict) else choices
    return all(text in prompt for text in strings_in(given))


# ---------------------------------------------------------------------- answers and labels


def read_chat(row: Row, columns: Columns) -> Chat:
    messages = read_conversation(row, columns["messages"])
    if any(message["role"] == "assistant" and not is_said(message) for message in messages):
        raise row.bad("an assistant turn without text")
    return Chat(with_system(row, columns, messages), tools=read_tools(row))


def is_said(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls") or message.get("weight") == 0)


def read_glaive_chat(row: Row, columns: Columns) -> Chat:
    messages, tools = read_glaive(row, columns["messages"]), list[dict[str, Any]]()
    if row.get(columns.get("system", "")):
        said, tools = read_glaive_system(row, columns["system"])
        messages.insert(0, {"role": "system", "content": said})
    return Chat(messages, tools=tools)


def read_answer(row: Row, columns: Columns) -> Chat:
    prompt, answer = read_both(row, columns)
    return Chat([*prompt, *answer], tools=read_tools(row))


def read_both(row: Row, columns: Columns) -> tuple[list[Message], list[Message]]:
    """Prompt and answer."""
    prompt = read_prompt(row, columns)
    answer = read_completion(row, columns["answer"], prompt, strip=is_hh(row.get(columns["prompt"])))
    return prompt, with_thought(row, answer)


def read_label(row: Row, columns: Columns) -> Label:
    """An answer with its prompt, or a chat that ends with the answer."""
    given, column = row.need(columns["label"]), columns["label"]
    desirable = parse_label(given)
    if desirable is None:
        problem = f"column {column!r} is {str(given)[:40]!r}; expected true or false"
        raise row.bad(problem, f"column {column!r} is no label")
    if "messages" not in columns:
        return Label(*read_both(row, columns), desirable, tools=read_tools(row))
    messages = read_chat(row, columns).messages
    if messages[-1]["role"] != "assistant":
        raise row.bad(f"{columns['messages']!r} ends without an answer that the label could judge")
    return Label(messages[:-1], messages[-1:], desirable, tools=read_tools(row))


def parse_label(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def read_text(row: Row, columns: Columns) -> Text:
    return Text(row.text(columns["text"]))


# ---------------------------------------------------------------------- pairs


def read_pair(row: Row, columns: Columns) -> Pair:
    prompt, strip = read_prompt(row, columns), is_hh(row.get(columns["prompt"]))
    sides = [read_completion(row, side, prompt, strip=strip) for side in ("chosen", "rejected")]
    return build_pair(row, prompt, *take_off_prompt(row, prompt, sides))


def build_pair(row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Pair:
    if chosen == rejected:
        raise row.bad(EQUAL)
    if list(map(comparable, chosen)) == list(map(comparable, rejected)):
        raise row.bad(ALIKE)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if any(message["role"] == "assistant" and not is_said(message) for message in messages):
            raise row.bad(f"{name!r} holds an empty answer")
    return Pair(prompt, chosen, rejected, row.number("margin") or 0.0, tools=read_tools(row))


def read_dialogues(row: Row, columns: Columns) -> Pair:
    """Two whole conversations: the prompt is what both begin with, up to where the assistant answers differently. A
    prompt beside them must be part of it."""
    chosen, rejected = (read_conversation(row, side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise row.bad(EQUAL)
    end = count_shared(chosen, rejected)
    while end > 0 and not all(end < len(side) and side[end]["role"] == "assistant" for side in (chosen, rejected)):
        end -= 1
    if end == 0:
        raise row.bad(NO_PROMPT)
    column = columns.get("prompt", "")
    if isinstance(row.get(column), str):
        asked = row[column].strip()
        if not any(asked == message["content"].strip() for message in chosen[:end]):
            problem = "which is not in what chosen and rejected share"
            raise row.bad(f"{column!r} is {asked[:40]!r}, {problem}", f"{column!r} holds a text {problem}")
    return build_pair(row, chosen[:end], chosen[end:], rejected[end:])


def count_shared(one: Any, other: Any) -> int:
    """How many elements both begin with."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))


def read_implicit_pair(row: Row, columns: Columns) -> Pair:
    """Two texts: the words that both begin with are the prompt."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if chosen == rejected:
        raise row.bad(EQUAL)
    end = count_shared(chosen, rejected)
    while end > 0 and not chosen[end - 1].isspace():  # no word is cut in two
        end -= 1
    prompt = chosen[:end].strip()
    if not prompt:
        raise row.bad(NO_PROMPT)
    best, worst = ([Message(role="assistant", content=text[end:].strip())] for text in (chosen, rejected))
    return build_pair(row, [{"role": "user", "content": prompt}], best, worst)


def read_rated(row: Row, columns: Columns) -> Pair:
    """The best rated completion against the worst."""
    given = row.need("completions")
    if not isinstance(given, list):
        raise row.bad(f"'completions' holds {type(given).__name__}; expected a list of rated completions")
    entries = [entry for entry in given if isinstance(entry, Mapping) and read_rating(entry) is not None]
    if len({read_rating(entry) for entry in entries}) < 2:
        raise row.bad("no two completions with different ratings")
    chosen = [pick(entries, key=lambda entry: read_rating(entry) or 0.0) for pick in (max, min)]
    best, worst = (str(entry.get("response", "")) for entry in chosen)
    return read_pair(Row({**row, "chosen": best, "rejected": worst}, row.location), columns)


def read_rating(entry: Mapping[str, Any]) -> float | None:
    """The first rating that is a number."""
    ratings = (entry.get(name) for name in RATING)
    return next((float(r) for r in ratings if isinstance(r, (int, float)) and not isinstance(r, bool)), None)

"""The forms that rows come in, and how each is read. All become one of four: a chat, a pair, an answer with a label,
or plain text.

A form is found by what is in a row, its columns and the kinds of their values, and says which columns it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aurify.data.messages import messages_of, tools_of
from aurify.data.pairs import Pair, hh_pair, implicit_pair, message_pair, prompted_pair
from aurify.data.sources import Row
from aurify.data.transcripts import glaive_messages, glaive_system, hh_messages, is_glaive, is_hh
from aurify.types import Lesson, Message

Columns = dict[str, str]  # part -> column of the file
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
ANSWERS = ("completion", "response", "answer", "output", "solution", "target")
SYSTEMS = ("system", "system_prompt")
TRUE, FALSE = ("true", "1", "1.0", "+1", "desirable", "yes"), ("false", "0", "0.0", "-1", "undesirable", "no")


@dataclass(frozen=True)
class Chat:
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Label:
    prompt: list[Message]
    completion: list[Message]
    desirable: bool
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    text: str


Example = Chat | Pair | Label | Text


@dataclass(frozen=True)
class Form:
    name: str
    holds: Lesson
    find: Callable[[Mapping[str, Any]], Columns | None]  # the columns of a row in this form; None: it is not
    read: Callable[[Row, Columns], Example]


# ---------------------------------------------------------------------- what a row looks like


def first(row: Mapping[str, Any], names: Iterable[str], *kinds: type) -> str | None:
    return next((name for name in names if isinstance(row.get(name), kinds) and row[name] not in ("", [])), None)


def list_with(row: Mapping[str, Any], *keys: str) -> str | None:
    """The column that holds a list of objects with these keys, whatever it is called."""
    for name in (*CHATS, *row):
        value = row.get(name)
        if name not in ("prompt", "completion", "chosen", "rejected") and isinstance(value, list) and value:
            entry = value[0]
            if isinstance(entry, Mapping) and all(entry.get(key) is not None for key in keys):
                return str(name)
    return None


def find_messages(row: Mapping[str, Any]) -> Columns | None:
    column = list_with(row, "role")
    return {"messages": column} if column else None


def find_sharegpt(row: Mapping[str, Any]) -> Columns | None:
    column = list_with(row, "from", "value")
    return {"messages": column} if column else None


def find_capybara(row: Mapping[str, Any]) -> Columns | None:
    column = list_with(row, "input", "output")
    return {"turns": column} if column else None


def find_glaive(row: Mapping[str, Any]) -> Columns | None:
    column = next((str(name) for name, value in row.items() if is_glaive(value)), None)
    return {"chat": column, **system_column(row)} if column else None


def find_alpaca(row: Mapping[str, Any]) -> Columns | None:
    if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
        return None
    return {"prompt": "instruction", "answer": "output", "input": "input", **system_column(row)}


def find_answer(row: Mapping[str, Any]) -> Columns | None:
    prompt = first(row, PROMPTS, str, list)
    answer = first(row, (name for name in ANSWERS if name != prompt), str, list, int, float)
    if prompt is None or answer is None or is_conversation(row[answer]) is None or is_conversation(row[prompt]) is None:
        return None
    context = first(row, ("context",), str)
    return {"prompt": prompt, "answer": answer, **({"input": context} if context else {}), **system_column(row)}


def is_conversation(value: Any) -> bool | None:
    """Text (False) or messages (True); None: neither."""
    if not isinstance(value, list):
        return False
    return True if value and isinstance(value[0], Mapping) and "role" in value[0] else None


def find_label(row: Mapping[str, Any]) -> Columns | None:
    found = find_answer(row)
    if found is None or label_value(row.get("label")) is None:
        return None
    return {**found, "label": "label"}


def unlabelled(find: Callable[[Mapping[str, Any]], Columns | None]) -> Callable[[Mapping[str, Any]], Columns | None]:
    """Answers with labels are no answers to imitate: half of them are bad."""
    return lambda row: None if find_label(row) is not None else find(row)


def find_pair(row: Mapping[str, Any]) -> Columns | None:
    prompt = "prompt" if "prompt" in row else first(row, PROMPTS, str, list)
    if "chosen" not in row or "rejected" not in row or prompt is None:
        return None
    return {"prompt": prompt, **system_column(row)}


def find_implicit(row: Mapping[str, Any]) -> Columns | None:
    both = [row.get("chosen"), row.get("rejected")]
    return {} if all(isinstance(value, str) for value in both) and first(row, PROMPTS, str, list) is None else None


def find_dialogues(row: Mapping[str, Any]) -> Columns | None:
    """Both sides are whole conversations: lists that do not begin with the assistant."""
    both = [row.get("chosen"), row.get("rejected")]
    opened = [
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and value[0].get("role") != "assistant"
        for value in both
    ]
    prompt = first(row, PROMPTS, str, list)
    return ({"prompt": prompt} if prompt else {}) if all(opened) else None


def find_hh(row: Mapping[str, Any]) -> Columns | None:
    return {} if is_hh(row.get("chosen")) and is_hh(row.get("rejected")) else None


def find_hh_chat(row: Mapping[str, Any]) -> Columns | None:
    column = next((str(name) for name, value in row.items() if is_hh(value)), None)
    return {"text": column} if column and "chosen" not in row else None


def find_rated(row: Mapping[str, Any]) -> Columns | None:
    entries, prompt = row.get("completions"), first(row, PROMPTS, str)
    rated = isinstance(entries, list) and len(entries) > 1 and all(isinstance(entry, Mapping) for entry in entries)
    return (
        {"prompt": prompt} if rated and prompt and all(rating(entry) is not None for entry in entries or []) else None
    )


def find_text(row: Mapping[str, Any]) -> Columns | None:
    column = first(row, ("text", "content"), str)
    return {"text": column} if column else None


def system_column(row: Mapping[str, Any]) -> Columns:
    column = first(row, SYSTEMS, str)
    return {"system": column} if column else {}


def label_value(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def rating(entry: Mapping[str, Any]) -> float | None:
    for name in ("overall_score", "score", "rating"):
        if isinstance(entry.get(name), (int, float)) and not isinstance(entry[name], bool):
            return float(entry[name])
    return None


# ---------------------------------------------------------------------- reading


def read_messages(row: Row, columns: Columns) -> Chat:
    return Chat(messages_of(row, columns["messages"]), tools_of(row))


def read_sharegpt(row: Row, columns: Columns) -> Chat:
    messages = messages_of(row, columns["messages"], "from", "value")
    return Chat([*system_of(row, system_column(row), messages), *messages], tools_of(row))


def read_capybara(row: Row, columns: Columns) -> Chat:
    turns, messages = row.need(columns["turns"]), list[Message]()
    if not isinstance(turns, list):
        raise row.bad(f"{columns['turns']!r} holds {type(turns).__name__}; expected a list of turns")
    for k, turn in enumerate(turns):
        said = [turn.get(part) for part in ("input", "output")] if isinstance(turn, Mapping) else [None]
        if not all(isinstance(text, str) and text.strip() for text in said):
            raise row.bad(
                f"{columns['turns']}[{k}] is {str(turn)[:80]}; expected an object with an input and an output",
                f"{columns['turns']!r} holds something that is no turn with input and output",
            )
        asked, answered = map(str, said)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat([*system_of(row, system_column(row), messages), *messages])


def read_glaive(row: Row, columns: Columns) -> Chat:
    messages, tools = glaive_messages(row, columns["chat"]), list[dict[str, Any]]()
    if "system" in columns and row.get(columns["system"]):
        said, tools = glaive_system(row, columns["system"])
        messages.insert(0, {"role": "system", "content": said})
    return Chat(messages, tools)


def read_answer(row: Row, columns: Columns) -> Chat:
    prompt = prompt_of(row, columns)
    return Chat([*prompt, *completion_of(row, columns["answer"])], tools_of(row))


def read_label(row: Row, columns: Columns) -> Label:
    given = row.need(columns.get("label", "label"))
    desirable = label_value(given)
    if desirable is None:
        raise row.bad(f"column 'label' is {str(given)[:40]!r}; expected true or false", "column 'label' is no label")
    return Label(prompt_of(row, columns), completion_of(row, columns["answer"]), desirable, tools_of(row))


def read_hh_chat(row: Row, columns: Columns) -> Chat:
    messages = hh_messages(row, columns["text"])
    if any(message["role"] == "assistant" and not message["content"] for message in messages):
        raise row.bad("an assistant turn without text")
    return Chat(messages)


def read_pair(row: Row, columns: Columns) -> Pair:
    return prompted_pair(row, prompt_of(row, columns), completion_of, tools_of(row))


def read_rated(row: Row, columns: Columns) -> Pair:
    """The best rated completion against the worst."""
    given = row.need("completions")
    if not isinstance(given, list):
        raise row.bad(f"'completions' holds {type(given).__name__}; expected a list of rated completions")
    entries = [entry for entry in given if isinstance(entry, Mapping)]
    rated = [(score, entry) for entry in entries if (score := rating(entry)) is not None]
    if len(rated) < 2 or max(score for score, _ in rated) == min(score for score, _ in rated):
        raise row.bad("no two completions with different ratings")
    texts = [str(pick(rated, key=lambda e: e[0])[1].get("response", "")) for pick in (max, min)]
    made = Row({**row, "chosen": texts[0], "rejected": texts[1]}, row.place)
    return prompted_pair(made, prompt_of(row, columns), completion_of, [])


def read_text(row: Row, columns: Columns) -> Text:
    return Text(row.text(columns["text"]))


def prompt_of(row: Row, columns: Columns) -> list[Message]:
    column = columns["prompt"]
    if isinstance(row.get(column), list):
        messages = messages_of(row, column)
    else:
        text, more = row.text(column), row.get(columns.get("input", ""))
        text = f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text
        messages = [{"role": "user", "content": text}]
    return [*system_of(row, columns, messages), *messages]


def system_of(row: Row, columns: Columns, messages: list[Message]) -> list[Message]:
    """The system prompt of a column, where the conversation has none."""
    text = row.get(columns.get("system", ""))
    if not isinstance(text, str) or not text.strip() or messages[0]["role"] == "system":
        return []
    return [{"role": "system", "content": text}]


def completion_of(row: Row, column: str) -> list[Message]:
    value = row.get(column)
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        messages = messages_of(row, column)
        if messages[0]["role"] != "assistant":
            raise row.bad(f"{column!r} begins with a message of role {messages[0]['role']}; expected the assistant's")
        return messages
    return [{"role": "assistant", "content": row.text(column)}]


# the more particular forms come first: the first that most rows have is taken
FORMS = (
    Form("hh", "pairs", find_hh, lambda row, columns: hh_pair(row)),
    Form("dialogue pairs", "pairs", find_dialogues, lambda row, columns: message_pair(row, columns.get("prompt"))),
    Form("pairs", "pairs", find_pair, read_pair),
    Form("implicit pairs", "pairs", find_implicit, lambda row, columns: implicit_pair(row)),
    Form("rated completions", "pairs", find_rated, read_rated),
    Form("labels", "labels", find_label, read_label),
    Form("messages", "answers", find_messages, read_messages),
    Form("sharegpt", "answers", find_sharegpt, read_sharegpt),
    Form("capybara", "answers", find_capybara, read_capybara),
    Form("glaive", "answers", find_glaive, read_glaive),
    Form("alpaca", "answers", unlabelled(find_alpaca), read_answer),
    Form("prompt and answer", "answers", unlabelled(find_answer), read_answer),
    Form("hh transcript", "answers", find_hh_chat, read_hh_chat),
    Form("text", "answers", find_text, read_text),
)

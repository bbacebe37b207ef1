"""Prompts and answers as rows hold them, for training data, tasks and traces alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aurify.data.messages import read_chat_column
from aurify.data.thoughts import find_thought_column, settle_example_thought
from aurify.data.transcripts import read_hh, read_transcript, strip_transcript_header
from aurify.rows.columns import CHAT, GOLD, PROMPT, find_column
from aurify.rows.row import Row, drop_invisible_characters, is_missing_value
from aurify.rows.values import parse_json_value
from aurify.types import Message, Task

Columns = Mapping[str, str]  # part -> column of the file
REPEATED = "the prompt stood at the beginning of both answers too, and was taken off"
WRITTEN_OUT = "a conversation that was written out as one text became messages"
HEADER_OFF = "what another chat template writes before an answer was taken off"
THOUGHT_JOINED = "the thought in a column of its own was put before the answer"
FEW_WORDS = 3  # a shorter prompt may begin an answer by chance

# ---------------------------------------------------------------------- prompts


def question(text: str, system: str | None = None) -> list[Message]:
    """A prompt of one user turn."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]


def read_chat_or_transcript(row: Row, column: str) -> list[Message]:
    """A list of messages, or a transcript."""
    given = row.get(column)
    if not isinstance(given, str) or is_missing_value(given):
        return read_chat_column(row, column)
    if messages := read_hh(given):
        return messages
    messages = read_transcript(given)
    if messages is None:
        return read_chat_column(row, column)  # says what is expected
    row.changes.append(WRITTEN_OUT)
    return messages


def read_open_transcript(row: Row, column: str) -> list[Message] | None:
    """The turns of a prompt that ends where the assistant is to speak. None: the prompt is no transcript."""
    given = row.get(column)
    hh = read_hh(given)
    spoken = any(isinstance(value, str) and value.lstrip().startswith("Assistant:") for value in row.values())
    messages = hh or read_transcript(given, asked=True, spoken=spoken)
    if not messages:
        return None
    if messages[-1]["role"] != "assistant":
        row.changes += [] if hh else [WRITTEN_OUT]
        return messages
    begun = messages.pop()["content"]
    if begun and hh:
        problem = f"the transcript in {column!r} ends with an answer"
        raise row.bad(f"{problem} that has begun; end it with 'Assistant:'", problem)
    if hh is None and not begun:
        row.changes.append(WRITTEN_OUT)
    return None if begun else messages


def read_prompt_column(row: Row, columns: Columns) -> list[Message]:
    """Messages, a transcript, or a text, which becomes a user's message with what belongs below it. Earlier turns and
    a system prompt may stand in columns of their own."""
    column = columns["prompt"]
    if isinstance(row.get(column), list):
        messages = read_chat_column(row, column)
    elif (turns := read_open_transcript(row, column)) is not None:
        messages = turns
    else:
        text, below = row.text(column), row.get(columns.get("input", ""))
        messages = question(f"{text}\n\n{below}" if isinstance(below, str) and below.strip() else text)
    return add_system_column(row, columns, [*read_history_column(row, columns.get("history", "")), *messages])


def read_history_column(row: Row, column: str) -> list[Message]:
    """Earlier turns: a list of questions and answers in turn, two by two."""
    turns = [] if is_missing_value(row.get(column)) else parse_json_value(row[column])
    messages: list[Message] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            problem = f"column {column!r} holds something that is no question with its answer"
            raise row.bad(f"{problem}: {str(turn)[:60]}; expected [[question, answer], ...]", problem)
        messages += [*question(turn[0]), {"role": "assistant", "content": turn[1]}]
    return messages


def add_system_column(row: Row, columns: Columns, messages: list[Message]) -> list[Message]:
    """With the system prompt of a column, where the conversation has none."""
    text = row.get(columns.get("system", ""))
    if not isinstance(text, str) or not text.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": text}, *messages]


# ---------------------------------------------------------------------- answers


def read_completion_column(row: Row, column: str, prompt: Sequence[Message], *, strip: bool = False) -> list[Message]:
    """The answer in a column, a text, messages or a transcript, without the prompt where it stands there again. strip:
    white space around a text belongs to the transcript that it goes on."""
    value = row.get(column)
    if isinstance(value, Mapping) or (isinstance(value, list) and is_list_of_objects(value)):
        messages = read_chat_column(row, column)
    else:
        text = row.text(column)
        turns = read_hh(text) or read_transcript(text) or []
        if not begins_with_prompt(turns, prompt) or len(turns) <= len(drop_system_message(prompt)):
            said = strip_transcript_header(text)
            row.changes += [HEADER_OFF] if said != text else []
            said = said.strip().removeprefix("Assistant:").strip() if strip else said
            return [{"role": "assistant", "content": said}]
        messages = turns
    if begins_with_prompt(messages, prompt):
        messages = messages[len(prompt) - (messages[0]["role"] != "system") * (prompt[0]["role"] == "system") :]
    if not messages or messages[0]["role"] != "assistant":
        begin = f"begins with a message of role {messages[0]['role']}" if messages else "holds the prompt alone"
        raise row.bad(f"{column!r} {begin}; expected the assistant's, or first the messages of the prompt")
    return messages


def begins_with_prompt(messages: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Whether the prompt stands there again, with its system prompt or without it."""
    shown = prompt if messages and messages[0]["role"] == "system" else drop_system_message(prompt)
    return bool(messages) and list(map(comparable_message, messages[: len(shown)])) == list(
        map(comparable_message, shown)
    )


def drop_system_message(messages: Sequence[Message]) -> Sequence[Message]:
    return messages[1:] if messages and messages[0]["role"] == "system" else messages


def continues_transcript(row: Row, columns: Columns) -> bool:
    """Whether the answer goes on a transcript."""
    given = row.get(columns["prompt"])
    return (read_hh(given) or read_transcript(given, asked=True, spoken=True)) is not None


def is_list_of_objects(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(message, Mapping) for message in value)


def comparable_message(message: Message) -> tuple[Any, ...]:
    """A message less what nobody sees: white space, characters of no width, forms of one letter."""
    seen = drop_invisible_characters(unicodedata.normalize("NFC", message["content"]))
    return message["role"], " ".join(seen.split()), message.get("tool_calls")


def add_thought_column(row: Row, completion: list[Message]) -> list[Message]:
    """With the thought that stands in a column of its own."""
    thought, first = find_thought_column(row), completion[0]
    settled = settle_example_thought(row, "the answer", thought, first["content"])
    if settled == first["content"]:
        return completion
    if thought:
        row.changes.append(THOUGHT_JOINED)
    return [{**first, "content": settled}, *completion[1:]]


def strip_prompt_from_pair(row: Row, prompt: Sequence[Message], sides: list[list[Message]]) -> list[list[Message]]:
    """The answers of a pair without the prompt, where both begin with it."""
    asked, texts = prompt[-1]["content"].strip(), [side[0]["content"].lstrip() for side in sides]
    rests = [text.removeprefix(asked) for text in texts]
    repeated = all(rest != text for rest, text in zip(rests, texts, strict=True))
    if (
        len(asked.split()) < FEW_WORDS
        or not repeated
        or any(asked[-1].isalnum() and rest[0].isalnum() for rest in rests)
    ):
        return sides
    if not all(rest.strip() for rest in rests):
        problem = "an answer that is the prompt alone, beside one that begins with it"
        raise row.bad(f"{problem}; fill it or remove the row", problem)
    row.changes.append(REPEATED)
    return [[{**side[0], "content": rest.strip()}, *side[1:]] for side, rest in zip(sides, rests, strict=True)]


# ---------------------------------------------------------------------- tasks and traces


def read_question_column(row: Row, column: str | None = None, system: str | None = None) -> list[Message]:
    """The prompt in a column. None: in the first column with a usual name; of a chat, all but its last message."""
    column = column or find_column(row, PROMPT, str, list)
    if column is not None:
        prompt = read_prompt_column(row, {"prompt": column})
        return prompt if system is None or isinstance(row[column], list) else [*question("", system)[:1], *prompt]
    chat = find_column(row, CHAT, list)
    if chat is None or len(row[chat]) < 2:
        raise row.bad(f"no question; expected one of the columns {', '.join((*PROMPT, *CHAT))}", "no question")
    return read_chat_column(row, chat)[:-1]


def read_gold_column(row: Row) -> str | None:
    """The answer to compare with, in a column with a usual name or where verl keeps it. None: there is none."""
    judged = row.get("reward_model")
    values = [row.get(name) for name in GOLD] + [judged.get("ground_truth") if isinstance(judged, dict) else None]
    return next((str(value) for value in values if is_gold_column(value)), None)


def is_gold_column(value: Any) -> bool:
    text = isinstance(value, str) and bool(value.strip())
    return not is_missing_value(value) and (text or (isinstance(value, int | float) and not isinstance(value, bool)))


def build_row_task(row: Row, prompt: list[Message], answer: str | None, but: Collection[str] = ()) -> Task:
    """but: columns that rewards do not receive by their names."""
    return Task(row.location, prompt, answer, {name: value for name, value in row.items() if name not in but})


def last_user_question(messages: Sequence[Message]) -> str:
    """What a prompt asks: its last user turn, white space aside. System prompts differ between a file and a task."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return " ".join((asked[-1] if asked else messages[-1]["content"]).split())

"""Messages of several dialects into the one that chat templates know: OpenAI's, ShareGPT's `from` and `value`, and
turns of `input` and `output`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aurify.data.calls import read_declared_calls, read_written_calls
from aurify.data.thoughts import find_thought_column, settle_example_thought, strip_think_tags
from aurify.rows.row import NANS, Row, is_missing_value
from aurify.types import Message

ROLES = ("system", "user", "assistant", "tool")
SAME_ROLE = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "bing": "assistant", "bard": "assistant", "claude": "assistant", "model": "assistant", "ai": "assistant",
    "developer": "system", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call", "tool_calls")  # ShareGPT writes a call as a turn of its own
SPEAKER, SAID = ("role", "from", "speaker"), ("content", "value", "text", "message")  # keys of a message
RENAME_ROLES = "maps: [{{name: rename_roles, roles: {{{role}: user}}}}] (or assistant, system, tool)"
CALL_JOINED = "a call in a turn of its own was joined to the assistant's text before it"
RESULT_TAGS = "<tool_response>", "</tool_response>"
UNWRAPPED = "tags around a tool's result were taken off: the chat template writes them"


def read_chat_column(row: Row, column: str) -> list[Message]:
    """The conversation in a column."""
    given = row.need(column)
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list):
        raise row.bad(f"{column!r} holds {type(given).__name__}; expected a list of messages")
    messages: list[Message] = []
    for index, entry in enumerate(given):
        where = f"{column}[{index}]"
        if isinstance(entry, Mapping) and "input" in entry and "output" in entry:
            messages += read_chat_turn(row, where, entry)
            continue
        message = read_chat_message(row, where, entry)
        if messages and is_chat_call(entry) and is_plain_chat_answer(messages[-1]):
            row.changes.append(CALL_JOINED)
            messages[-1]["tool_calls"] = message["tool_calls"]
        else:
            messages.append(message)
    return messages


def is_chat_call(entry: Mapping[str, Any]) -> bool:
    return read_chat_role(entry) in CALL_ROLES


def is_plain_chat_answer(message: Message) -> bool:
    return message["role"] == "assistant" and "tool_calls" not in message and "weight" not in message


def read_chat_turn(row: Row, where: str, turn: Mapping[str, Any]) -> list[Message]:
    """Capybara writes a question and its answer as one object."""
    asked, said = turn["input"], turn["output"]
    if not all(isinstance(text, str) and text.strip() for text in (asked, said)):
        raise row.bad(
            f"{where} is {str(turn)[:80]}; expected an object with an input and an output",
            f"{chat_column_name(where)!r} holds something that is no turn with input and output",
        )
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def read_chat_message(row: Row, where: str, given: Any) -> Message:
    values = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    role = read_chat_role(values)
    calls = read_declared_calls(row, where, values)
    said = next((values[key] for key in SAID if key in values), "" if calls else None)
    thought, content = read_chat_content(said, role)
    if role in CALL_ROLES:
        role, calls, content = "assistant", read_written_calls(row, where, content or ""), ""
    if role not in ROLES or content is None:
        raise refuse_chat_message(row, where, given, role, said)
    if content in NANS:
        problem = f"{where} is {content!r}, which stands for a missing value; fill it or remove the row"
        raise row.bad(problem, f"{chat_column_name(where)!r}: a message that is 'nan'")
    weight = read_chat_weight(row, where, values, role)
    if role in ("user", "assistant") and is_missing_value(content) and not calls and weight != 0:
        problem = f"{'an' if role == 'assistant' else 'a'} {role} message without text"
        raise row.bad(f"{where} is {problem}; fill it or remove the row", f"{chat_column_name(where)!r}: {problem}")
    if role == "assistant":
        content = settle_example_thought(row, where, thought or find_thought_column(values), content)
    if role == "tool" and content.strip().startswith(RESULT_TAGS[0]) and content.strip().endswith(RESULT_TAGS[1]):
        row.changes.append(UNWRAPPED)
        content = content.strip()[len(RESULT_TAGS[0]) : -len(RESULT_TAGS[1])].strip()
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = calls
    if isinstance(values.get("tool_call_id"), str):
        message["tool_call_id"] = values["tool_call_id"]
    if isinstance(values.get("name"), str):
        message["name"] = values["name"]
    if weight is not None:
        message["weight"] = weight
    if role == "assistant" and values.get("goes_on") is True:
        message["goes_on"] = True
    return message


def read_chat_role(values: Mapping[str, Any]) -> str | None:
    """Who speaks, in the usual word; any other word as it is."""
    role = next((values[key] for key in SPEAKER if isinstance(values.get(key), str)), None)
    plain = role.strip().lower() if role is not None else ""
    return SAME_ROLE.get(plain, plain if plain in (*ROLES, *CALL_ROLES) else role)


def refuse_chat_message(row: Row, where: str, given: Any, role: str | None, said: Any) -> Exception:
    """Says what is wrong with it."""
    column = chat_column_name(where)
    if not isinstance(given, Mapping) or role is None:
        return row.bad(
            f"{where} is {str(given)[:80]}; expected an object with a role (or from: {', '.join(ROLES)}) and a content "
            "(or value) that is text",
            f"{column!r} holds something that is no message with a role and text",
        )
    if role not in (*ROLES, *CALL_ROLES):
        mend = RENAME_ROLES.format(role=role)
        problem = f"a message of the role {role!r}"
        return row.bad(f"{where} is {problem}; expected one of {', '.join(ROLES)}", f"{column!r}: {problem}", mend)
    parts = [str(part.get("type")) for part in said if isinstance(part, Mapping)] if isinstance(said, list) else []
    if other := next((kind for kind in parts if kind != "text"), ""):
        problem = f"a part of type {other!r}"
        return row.bad(f"{where} has {problem}; only text is trained, so take it out", f"{column!r}: {problem}")
    found = "no content" if said is None else f"a content that is {type(said).__name__}"
    return row.bad(f"{where} ({role}) has {found}; expected text, or a list of text parts", f"{column!r}: {found}")


def chat_column_name(where: str) -> str:
    return where.partition("[")[0]


def read_chat_content(content: Any, role: str | None) -> tuple[str, str | None]:
    """The thought, and the text: of the parts of a list too; what a tool gives may be any value, and is written as
    JSON. None: neither, such as an image."""
    if isinstance(content, Mapping) and content.get("type") == "text":
        content = [content]
    if isinstance(content, int | float) and not isinstance(content, bool) and abs(content) != float("inf"):
        content = str(content)
    if role == "tool" and content is not None and not isinstance(content, str) and not is_content_parts(content):
        return "", json.dumps(content, ensure_ascii=False, default=str)
    if is_content_parts(content):
        thoughts = [find_thought_column(part) or part.get("text") for part in content if is_thought_part(part)]
        texts = [part.get("text") for part in content if is_text_part(part)]
        known = len(texts) + len(thoughts) == len(content) and all(isinstance(t, str) for t in (*texts, *thoughts))
        return ("".join(map(strip_think_tags, thoughts)), "".join(texts)) if known else ("", None)
    return "", content if isinstance(content, str) else None


def is_content_parts(content: Any) -> bool:
    several = isinstance(content, list) and bool(content)
    return several and all(isinstance(part, Mapping) and ("type" in part or "text" in part) for part in content)


def is_text_part(part: Mapping[str, Any]) -> bool:
    return part.get("type", "text") in ("text", "input_text", "output_text")


def is_thought_part(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("thinking", "reasoning")


def read_chat_weight(row: Row, where: str, values: Mapping[str, Any], role: str) -> float | None:
    """What `train` (true or false) or `weight` (a number) of a message say; None where it has neither."""
    if "train" not in values and "weight" not in values:
        return None
    given = values["train"] if "train" in values else values["weight"]
    if not isinstance(given, (bool, int, float)) or not 0 <= given < float("inf"):
        raise row.bad(
            f"{where} has train or weight {given!r}; expected true, false or a number of at least 0",
            "a message's train or weight is no number of at least 0",
        )
    if role == "assistant":
        return float(given)
    if values.get("train"):
        raise row.bad(
            f"{where} is to be trained and is of role {role}; only assistant messages can be",
            f"a message of role {role} is to be trained",
        )
    return None

"""Messages of several dialects into the one that chat templates know: OpenAI's, ShareGPT's `from` and `value`, turns of
`input` and `output`, and calls and tools as they are found in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aurify.rows.columns import THOUGHT, TOOLS
from aurify.rows.row import NANS, Row
from aurify.rows.values import parse_json, prune
from aurify.tools.calls import Call, read_call, read_calls
from aurify.tools.schema import list_functions
from aurify.types import Message

ROLES = ("system", "user", "assistant", "tool")
SAME_ROLE = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant", "developer": "system", "function": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")  # ShareGPT writes a call as a turn of its own


def read_messages(row: Row, column: str) -> list[Message]:
    """The conversation in a column."""
    given = row.need(column)
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list):
        raise row.bad(f"{column!r} holds {type(given).__name__}; expected a list of messages")
    messages: list[Message] = []
    for index, entry in enumerate(given):
        where = f"{column}[{index}]"
        is_turn = isinstance(entry, Mapping) and "input" in entry and "output" in entry
        messages += read_turn(row, where, entry) if is_turn else [read_message(row, where, entry)]
    return messages


def read_turn(row: Row, where: str, turn: Mapping[str, Any]) -> list[Message]:
    """Capybara writes a question and its answer as one object."""
    asked, said = turn["input"], turn["output"]
    if not all(isinstance(text, str) and text.strip() for text in (asked, said)):
        raise row.bad(
            f"{where} is {str(turn)[:80]}; expected an object with an input and an output",
            f"{column_name(where)!r} holds something that is no turn with input and output",
        )
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def read_message(row: Row, where: str, given: Any) -> Message:
    values = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    role = values.get("role", values.get("from"))
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else None
    calls = read_declared(row, where, values)
    content = read_content(values.get("content", values.get("value", "" if calls else None)), role)
    if role in CALL_ROLES:
        role, calls, content = "assistant", read_written(row, where, content or ""), ""
    if role not in ROLES or content is None:
        raise row.bad(
            f"{where} is {str(given)[:80]}; expected an object with a role (or from: {', '.join(ROLES)}) and a content "
            "(or value) that is text",
            f"{column_name(where)!r} holds something that is no message with a role and text",
        )
    if content in NANS:
        problem = f"{where} is {content!r}, which stands for a missing value; fill it or remove the row"
        raise row.bad(problem, f"{column_name(where)!r}: a message that is 'nan'")
    weight = read_weight(row, where, values, role)
    if role == "assistant" and not content.strip() and not calls and weight != 0:
        problem = "an assistant message without text"
        raise row.bad(f"{where} is {problem}", f"{column_name(where)!r}: {problem}")
    message: Message = {"role": role, "content": join_thought(find_thought(values), content)}
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


def column_name(where: str) -> str:
    return where.partition("[")[0]


def read_content(content: Any, role: str | None) -> str | None:
    """Text, or the text parts of a list; what a tool gives may be any value, and is written as JSON. None: neither,
    such as an image."""
    if role == "tool" and content is not None and not isinstance(content, str) and not is_parts(content):
        return json.dumps(content, ensure_ascii=False, default=str)
    if is_parts(content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
        return "".join(text for text in texts if text) if whole else None
    return content if isinstance(content, str) else None


def is_parts(content: Any) -> bool:
    several = isinstance(content, list) and bool(content)
    return several and all(isinstance(part, Mapping) and ("type" in part or "text" in part) for part in content)


def find_thought(values: Mapping[str, Any]) -> str:
    """The thought that stands beside a text, in a column of its own."""
    return next((values[key] for key in THOUGHT if isinstance(values.get(key), str) and values[key].strip()), "")


def join_thought(thought: str, content: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n{content}" if thought else content


def read_weight(row: Row, where: str, values: Mapping[str, Any], role: str) -> float | None:
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


# ---------------------------------------------------------------------- calls and tools


def read_declared(row: Row, where: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message, their arguments as objects: templates write JSON themselves."""
    found = [values["function_call"]] if values.get("function_call") else values.get("tool_calls") or []
    found = parse_json(found)
    if not isinstance(found, list):
        raise row.bad(f"{where}: tool_calls is {str(found)[:60]}; expected a list", "tool_calls is no list")
    # an argument that is null: another call of the file has it, this one has not
    calls = [write_call(row, where, read_call(prune(call))) for call in found]
    return [
        {"id": given["id"], **call} if isinstance(given, Mapping) and isinstance(given.get("id"), str) else call
        for given, call in zip(found, calls, strict=True)
    ]


def read_written(row: Row, where: str, text: str) -> list[dict[str, Any]]:
    """Calls that a file writes as text, in any form that `read_calls` knows."""
    calls = read_calls(text)
    if not calls:
        raise row.bad(f"{where}: the call {text[:80]!r} cannot be read", "a tool call that cannot be read")
    return [write_call(row, where, call) for call in calls]


def write_call(row: Row, where: str, call: Call) -> dict[str, Any]:
    if call.problem:
        short = "the arguments of a tool call are no JSON object" if call.name else "a tool call without a name"
        raise row.bad(f"{where}: {call.problem}", short)
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def read_tools(row: Row) -> list[dict[str, Any]]:
    """The tools that a row offers, each as {"type": "function", "function": {...}}."""
    column = next((name for name in TOOLS if row.get(name)), None)
    if column is None:
        return []
    try:
        functions = list_functions(row[column])
    except ValueError as error:
        raise row.bad(f"column {column!r}: {error}", f"{column!r} is no list of tools with names") from None
    return [{"type": "function", "function": {k: v for k, v in prune(f).items() if k != "type"}} for f in functions]

"""Messages of several dialects into the one that chat templates know: OpenAI's, ShareGPT's `from` and `value`, and
calls and tools as they are found in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aurify.data.sources import Row
from aurify.types import Message

ROLES = ("system", "user", "assistant", "tool")
SAME_ROLE = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant", "developer": "system", "function": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys that some files keep a thought under


def messages_of(row: Row, column: str, role_key: str = "role", text_key: str = "content") -> list[Message]:
    """The conversation in a column."""
    messages = row.need(column)
    if not isinstance(messages, list):
        raise row.bad(f"{column!r} holds {type(messages).__name__}; expected a list of messages")
    return [message_of(row, f"{column}[{k}]", message, role_key, text_key) for k, message in enumerate(messages)]


def message_of(row: Row, where: str, given: Any, role_key: str, text_key: str) -> Message:
    column = where.partition("[")[0]
    values = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    role = values.get(role_key)
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else None
    calls = calls_of(row, where, values)
    content = text_of(values.get(text_key, "" if calls else None))
    if role == "function_call" or role == "tool_call":  # ShareGPT writes a call as a turn of its own
        role, calls, content = "assistant", calls_in(row, where, content or ""), ""
    if role not in ROLES or content is None:
        raise row.bad(
            f"{where} is {str(given)[:80]}; expected an object with a {role_key} ({', '.join(ROLES)}) and a {text_key} "
            "that is text",
            f"{column!r} holds something that is no message with a {role_key} and text",
        )
    if role == "assistant" and not content.strip() and not calls and weight_of(row, where, values, role) != 0:
        raise row.bad(f"{where} is an assistant message without text", f"{column!r}: an assistant message without text")
    message: Message = {"role": role, "content": with_thought(content, values)}
    if calls:
        message["tool_calls"] = calls
    if isinstance(values.get("tool_call_id"), str):
        message["tool_call_id"] = values["tool_call_id"]
    if isinstance(values.get("name"), str):
        message["name"] = values["name"]
    weight = weight_of(row, where, values, role)
    if weight is not None:
        message["weight"] = weight
    return message


def text_of(content: Any) -> str | None:
    """Text, or the text parts of a list. None: neither, such as an image."""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
        return "".join(text for text in texts if text) if whole else None
    return content if isinstance(content, str) else None


def with_thought(content: str, values: Mapping[str, Any]) -> str:
    thought = next((values[key] for key in THOUGHTS if isinstance(values.get(key), str) and values[key].strip()), None)
    return content if thought is None else f"<think>\n{thought.strip()}\n</think>\n\n{content}"


def weight_of(row: Row, where: str, values: Mapping[str, Any], role: str) -> float | None:
    """What `train` (true or false) or `weight` (a number) of a message say; None where it has neither."""
    if "train" not in values and "weight" not in values:
        return None
    given = values["train"] if "train" in values else values["weight"]
    if not isinstance(given, (bool, int, float)) or not 0 <= given < float("inf"):
        raise row.bad(
            f"{where} has train or weight {given!r}; expected true, false or a number of at least 0",
            "a message's train or weight is no number of at least 0",
        )
    if role != "assistant":
        if values.get("train"):
            raise row.bad(
                f"{where} is to be trained and is of role {role}; only assistant messages can be",
                f"a message of role {role} is to be trained",
            )
        return None
    return float(given)


# ---------------------------------------------------------------------- calls and tools


def calls_of(row: Row, where: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message, their arguments as objects: templates write JSON themselves."""
    found = values.get("tool_calls") or []
    if values.get("function_call"):
        found = [values["function_call"]]
    if isinstance(found, str):
        found = parsed(found)
    if not isinstance(found, list):
        raise row.bad(f"{where}: tool_calls is {str(found)[:60]}; expected a list", "tool_calls is no list")
    return [call_of(row, where, call) for call in found]


def call_of(row: Row, where: str, given: Any) -> dict[str, Any]:
    function = given.get("function", given) if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise row.bad(
            f"{where}: the tool call {str(given)[:80]} has no name; expected {{'name': ..., 'arguments': {{...}}}}",
            "a tool call without a name",
        )
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if arguments in (None, "") else parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise row.bad(
            f"{where}: the arguments of {name!r} are {str(function.get('arguments'))[:60]!r}; expected a JSON object",
            "the arguments of a tool call are no JSON object",
        )
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    identity = given.get("id") if isinstance(given, Mapping) else None
    return {"id": identity, **call} if isinstance(identity, str) else call


def calls_in(row: Row, where: str, text: str) -> list[dict[str, Any]]:
    """Calls that stand as JSON in a text: one object, or a list of them."""
    found = parsed(text)
    if not isinstance(found, (dict, list)):
        raise row.bad(f"{where}: the call {text[:80]!r} is no JSON", "a tool call that is no JSON")
    return [call_of(row, where, call) for call in (found if isinstance(found, list) else [found])]


def tools_of(row: Row) -> list[dict[str, Any]]:
    """The tools that a row offers, each as {"type": "function", "function": {...}}."""
    column = next((name for name in ("tools", "functions") if row.get(name)), None)
    if column is None:
        return []
    given = parsed(row[column]) if isinstance(row[column], str) else row[column]
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise row.bad(
            f"column {column!r} is {str(row[column])[:60]!r}; expected a list of JSON schemas", f"{column!r} is no list"
        )
    tools = [tool_of(tool) for tool in given]
    if not all(isinstance(tool["function"].get("name"), str) for tool in tools):
        raise row.bad(f"column {column!r} holds a tool without a name", "a tool without a name")
    return tools


def tool_of(given: Mapping[str, Any]) -> dict[str, Any]:
    function = given["function"] if isinstance(given.get("function"), Mapping) else given
    inner = {key: value for key, value in function.items() if value is not None and key != "type"}
    return {"type": "function", "function": inner}


def parsed(text: str) -> Any:
    """JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

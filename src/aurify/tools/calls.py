"""Calls of tools, read from what a model wrote and from data: the one parser for rewards, environments and files.

Calls stand between marks (`<tool_call>`, `[TOOL_CALLS]`, `<|python_tag|>` and those of other models), in fences, or
plainly in the text, with words around them or without. What a model writes in a thought is no call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.rows.values import parse_json_value
from aurify.thoughts import final_answer
from aurify.tools.forms import DECODER, Properties, read_call_form, read_json_calls, read_named_calls, read_python_calls
from aurify.tools.schema import read_tool_schemas

OPENING = re.compile(
    r"(?<!`)(?:<(?:\w+:)?tool_calls?>|<function_?calls?>|<TOOLCALL>|<atem:function_calls>|\[TOOL_CALLS\]|<\|python_tag\|>"
    r"|<\|tool_call(?:\||_start\||_begin\|)?>|<\|START_ACTION\|>|<\uff5ctool[▁_]call[▁_]begin\uff5c>|to=(?=functions\.)"
    r"|<\|python_start\|>|<\|tools_prefix\|>|<start_function_call>|<\uff5cDSML\uff5c(?:function|tool)_calls>"
    r"|>>>(?=[\w.]+\n\s*\{)|(?=<function=)|(?=<invoke name=))"
)
CLOSING = re.compile(
    r"</(?:\w+:)?tool_calls?>|</function_?calls?>|</TOOLCALL>|</atem:function_calls>|<tool_call\|>|<\|/tool_call\|>"
    r"|<\|tool_call_end\|>|<\|END_ACTION\|>|<\uff5ctool[▁_]call[▁_]end\uff5c>|<\|call\|>"
    r"|<\|python_end\|>|<\|tools_suffix\|>|<end_function_call>|</\uff5cDSML\uff5c(?:function|tool)_calls>|<\|e(?:o[mt]_id|ndoftext)\|>"
)
FORM = '{"name": ..., "arguments": {...}}'
REACT = re.compile(  # of agents that write "Action:" (ReAct), and of Qwen2
    r"(?:^Action|\u273fFUNCTION\u273f):\s*([\w.\-]+)\s*\n\s*(?:Action Input|\u273fARGS\u273f):\s*(?=\{)", re.MULTILINE
)
PYTHON_LINE = re.compile(r"^\s*\[\s*[A-Za-z_][\w.]*\(.*\)\s*\]\s*$", re.MULTILINE)
NAMES = ("name", "tool_name", "function_name", "tool", "action")
ARGUMENTS = ("arguments", "parameters", "args", "input", "action_input")
FENCE = re.compile(r"```[ \t]*(?:json|tool_calls?|tool_code|python)?[ \t]*\r?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Any  # a mapping, unless there is a problem
    problem: str = ""  # why the call cannot be read, or made


def read_call(value: Any) -> Call:
    """From {name, arguments}, also below `function`. Arguments may be JSON text, even twice, and called parameters."""
    entry = value.get("function", value.get("function_call", value)) if isinstance(value, Mapping) else value
    if isinstance(entry, str) and isinstance(value, Mapping):  # {"function": "f", "arguments": ...}
        entry = {**value, "name": entry}
    entry = entry if isinstance(entry, Mapping) else {}
    name = next((entry[key] for key in NAMES if entry.get(key)), None)
    if not isinstance(name, str):
        return Call("", {}, f"the call {shorten_call_repr(value)} has no name; expected {FORM}")
    given: Any = next((entry[key] for key in ARGUMENTS if entry.get(key) is not None), {})
    arguments = {} if isinstance(given, str) and not given.strip() else parse_json_value(given)
    if not isinstance(arguments, Mapping):
        return Call(
            name, arguments, f"the arguments of {name!r} are {shorten_call_repr(given)}; expected a JSON object"
        )
    return Call(name, dict(arguments))


def read_calls(text: str, tools: Any = (), opened: bool = False) -> list[Call]:
    """Every call of a reply, in its order. tools: what was offered, in any dialect; forms that write no types or no
    names take them from there. opened: the text begins in a thought."""
    answer = final_answer(text, opened)
    if answer is None:
        return []
    properties = {name: schema.get("properties", {}) for name, schema in read_tool_schemas(tools).items()}
    marked = find_marked_calls(answer)
    if not marked:
        return read_unmarked_calls(answer, properties)
    calls: list[Call] = []
    for body in marked:
        entries = read_call_form(body, properties)
        if entries is None:
            calls.append(Call("", {}, f"the call {shorten_call_repr(body.strip())} cannot be read; expected {FORM}"))
        else:
            calls += [read_call(read_call_by_key(entry, properties)) for entry in unpack_calls(entries)]
    return calls


def read_message_calls(message: Mapping[str, Any], tools: Any = ()) -> list[Call]:
    """Those that a message declares, else those in its text."""
    if declared := message.get("tool_calls"):
        return [read_call(call) for call in declared]
    return read_calls(str(message.get("content") or ""), tools)


def read_tool_calls(text: str, tools: Any = (), opened: bool = False) -> list[dict[str, Any]]:
    """The calls of a reply as messages hold them. One that cannot be read has no arguments and a `problem`."""
    calls = []
    for number, call in enumerate(read_calls(text, tools, opened)):
        function = {"name": call.name, "arguments": {} if call.problem else call.arguments}
        calls.append({"id": f"call{number:05d}", "type": "function", "function": function})
        if call.problem:
            calls[-1]["problem"] = call.problem
    return calls


def find_marked_calls(text: str) -> list[str]:
    """What stands after each opening mark, up to a closing one, the next opening one or the end."""
    bodies = []
    openings = list(OPENING.finditer(text))
    for opening, end in zip(openings, [*(mark.start() for mark in openings[1:]), len(text)], strict=False):
        closing = CLOSING.search(text, opening.end(), end)
        body = text[opening.end() : closing.start() if closing else end]
        if body.strip() or closing or end == len(text):  # else it opens a list of calls that have marks of their own
            bodies.append(body)
    return bodies


def read_unmarked_calls(text: str, properties: Properties) -> list[Call]:
    """JSON or Python that is the whole text, or whole fences; else lines of Python that call a known tool, or every
    JSON value with name and arguments."""
    for pieces in (FENCE.findall(text), [text], PYTHON_LINE.findall(text) if properties else []):
        calls = [call for piece in pieces for call in read_call_piece(piece, properties)]
        if calls:
            return calls
    if found := REACT.search(text):
        entries = read_json_calls(text[found.end() :].partition("\nObservation")[0], properties)
        return [read_call({"name": found[1], "arguments": arguments}) for arguments in entries or []]
    return [read_call(entry) for entry in find_call_values(text)]


def read_call_piece(piece: str, properties: Properties) -> list[Call]:
    entries = read_json_calls(piece, properties)
    if entries:
        entries = [read_call_by_key(entry, properties) for entry in unpack_calls(entries)]
        calls = [read_call(entry) for entry in entries if looks_like_call(entry) or is_bare_call(entry, properties)]
        return calls if len(calls) == len(entries) else []
    entries = read_python_calls(piece, properties) or []
    named = read_named_calls(piece, properties) or []  # a name before JSON (GLM-4)
    entries += [entry for entry in named if entry["name"] in properties]
    return [read_call(entry) for entry in entries]


def read_call_by_key(entry: Any, properties: Properties) -> Any:
    """{"f": {...}} as a call of the tool f."""
    if isinstance(entry, Mapping) and len(entry) == 1 and (name := next(iter(entry))) in properties:
        return {"name": name, "arguments": entry[name]}
    return entry


def is_bare_call(entry: Any, properties: Properties) -> bool:
    """A call without arguments, of a known tool if any are known."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        return False
    return entry.keys() <= {"name", "type", "id"} and (entry["name"] in properties or not properties)


def find_call_values(text: str) -> list[Any]:
    found: list[Any] = []
    index, openings = 0, re.compile(r"[{\[]")
    while opening := openings.search(text, index):
        try:
            value, index = DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            index = opening.end()
            continue
        entries = unpack_calls(value if isinstance(value, list) else [value])
        if entries and all(looks_like_call(entry) for entry in entries):
            found += entries
    return found


def unpack_calls(entries: Sequence[Any]) -> list[Any]:
    """Without the object that some models put around their calls: {"tool_calls": [...]}."""
    inner = [entry.get("tool_calls") if isinstance(entry, Mapping) else None for entry in entries]
    return [
        part
        for entry, calls in zip(entries, inner, strict=True)
        for part in (calls if isinstance(calls, list) else [entry])
    ]


def looks_like_call(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    function = entry.get("function", entry.get("function_call"))
    inner = function if isinstance(function, Mapping) else entry
    named = any(isinstance(inner.get(key), str) for key in NAMES) or isinstance(function, str)
    given = next((inner[key] for key in ARGUMENTS if key in inner), None)
    is_schema = isinstance(given, Mapping) and given.get("type") == "object" and "properties" in given
    return named and any(key in inner for key in ARGUMENTS) and not is_schema


def shorten_call_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

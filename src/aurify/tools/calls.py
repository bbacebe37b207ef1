"""Calls of tools, read from what a model wrote and from data: the one parser for rewards, environments and files.

Calls stand between marks (`<tool_call>`, `[TOOL_CALLS]`, `<|python_tag|>` and those of other models), in fences, or
plainly in the text, with words around them or without. What a model writes in a thought is no call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.thoughts import final_answer
from aurify.tools.forms import DECODER, Properties, parse_json, read_form, read_json, read_python
from aurify.tools.schema import read_schemas

OPENING = re.compile(
    r"<(?:\w+:)?tool_calls?>|<function_?calls?>|<TOOLCALL>|<atem:function_calls>|\[TOOL_CALLS\]|<\|python_tag\|>"
    r"|<\|tool_call(?:\||_start\||_begin\|)?>|<\|START_ACTION\|>|<\uff5ctool▁call▁begin\uff5c>|to=(?=functions\.)"
    r"|(?=<function=)|(?=<invoke name=)"
)
CLOSING = re.compile(
    r"</(?:\w+:)?tool_calls?>|</function_?calls?>|</TOOLCALL>|</atem:function_calls>|<tool_call\|>|<\|/tool_call\|>"
    r"|<\|tool_call_end\|>|<\|END_ACTION\|>|<\uff5ctool▁call▁end\uff5c>|<\|call\|>|<\|e(?:o[mt]_id|ndoftext)\|>"
)
FORM = '{"name": ..., "arguments": {...}}'
FENCE = re.compile(r"```[ \t]*(?:json|tool_calls?|tool_code|python)?[ \t]*\r?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Any  # a mapping, unless there is a problem
    problem: str = ""  # why the call cannot be read, or made


def read_call(value: Any) -> Call:
    """From {name, arguments}, also below `function`. Arguments may be JSON text, even twice, and called parameters."""
    entry = value.get("function", value) if isinstance(value, Mapping) else value
    if isinstance(entry, str) and isinstance(value, Mapping):  # {"function": "f", "arguments": ...}
        entry = {**value, "name": entry}
    entry = entry if isinstance(entry, Mapping) else {}
    name = entry.get("name") or entry.get("tool_name")
    if not isinstance(name, str):
        return Call("", {}, f"the call {shorten(value)} has no name; expected {FORM}")
    keys = ("arguments", "parameters", "args", "input")
    given: Any = next((entry[key] for key in keys if entry.get(key) is not None), {})
    arguments = given
    for _ in range(2):
        if isinstance(arguments, str):
            arguments = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        return Call(name, arguments, f"the arguments of {name!r} are {shorten(given)}; expected a JSON object")
    return Call(name, dict(arguments))


def read_calls(text: str, tools: Any = (), opened: bool = False) -> list[Call]:
    """Every call of a reply, in its order. tools: what was offered, in any dialect; forms that write no types or no
    names take them from there. opened: the text begins in a thought."""
    answer = final_answer(text, opened)
    if answer is None:
        return []
    properties = {name: schema.get("properties", {}) for name, schema in read_schemas(tools).items()}
    marked = find_marked(answer)
    if not marked:
        return read_unmarked(answer, properties)
    calls: list[Call] = []
    for body in marked:
        entries = read_form(body, properties)
        if entries is None:
            calls.append(Call("", {}, f"the call {shorten(body.strip())} cannot be read; expected {FORM}"))
        else:
            calls += [read_call(entry) for entry in unpack(entries)]
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


def find_marked(text: str) -> list[str]:
    """What stands after each opening mark, up to a closing one, the next opening one or the end."""
    bodies = []
    openings = list(OPENING.finditer(text))
    for opening, end in zip(openings, [*(mark.start() for mark in openings[1:]), len(text)], strict=False):
        closing = CLOSING.search(text, opening.end(), end)
        body = text[opening.end() : closing.start() if closing else end]
        if body.strip() or closing or end == len(text):  # else it opens a list of calls that have marks of their own
            bodies.append(body)
    return bodies


def read_unmarked(text: str, properties: Properties) -> list[Call]:
    """JSON or Python that is the whole text or a whole fence; else every JSON value with name and arguments."""
    pieces = [piece for piece in (*FENCE.findall(text), text) if piece.strip()]
    for piece in pieces:
        entries = read_json(piece, properties) or read_python(piece, properties) or []
        calls = [read_call(entry) for entry in unpack(entries)]
        if any(call.name for call in calls):
            return calls
    return [read_call(entry) for entry in find_values(text)]


def find_values(text: str) -> list[Any]:
    found: list[Any] = []
    index, openings = 0, re.compile(r"[{\[]")
    while opening := openings.search(text, index):
        try:
            value, index = DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            index = opening.end()
            continue
        entries = unpack(value if isinstance(value, list) else [value])
        if entries and all(looks_like_call(entry) for entry in entries):
            found += entries
    return found


def unpack(entries: Sequence[Any]) -> list[Any]:
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
    function = entry.get("function")
    inner = function if isinstance(function, Mapping) else entry
    named = any(isinstance(inner.get(key), str) for key in ("name", "tool_name")) or isinstance(function, str)
    return named and any(key in inner for key in ("arguments", "parameters"))


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

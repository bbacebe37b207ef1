"""Calls of tools and tools, as they are found in files, in the one form that chat templates know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurify.rows.columns import TOOLS
from aurify.rows.row import NANS, Row
from aurify.rows.values import drop_nulls_in_objects, parse_json_value, parse_printed_value
from aurify.tools.calls import Call, read_call, read_calls
from aurify.tools.schema import list_tool_functions

NOTHING = (*NANS, "None", "null", "")


def read_declared_calls(row: Row, where: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message, their arguments as objects: templates write JSON themselves."""
    found = values.get("function_call") or values.get("tool_calls")
    found = [] if isinstance(found, str) and found.strip() in NOTHING else parse_json_value(found) or []
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list):
        raise row.bad(f"{where}: tool_calls is {str(found)[:60]}; expected a list", "tool_calls is no list")
    # an argument that is null: another call of the file has it, this one has not; and so for a whole call
    found = [
        call
        for call in (drop_nulls_in_objects(parse_json_value(call)) for call in found)
        if call and call != {"function": {}}
    ]
    calls = [write_declared_call(row, where, read_printed_call(read_call(call))) for call in found]
    return [
        {"id": given["id"], **call} if isinstance(given, Mapping) and isinstance(given.get("id"), str) else call
        for given, call in zip(found, calls, strict=True)
    ]


def read_printed_call(call: Call) -> Call:
    """With arguments that Python has printed."""
    printed = call.arguments if isinstance(call.arguments, str) else ""
    arguments = parse_printed_value(printed) if printed.lstrip().startswith("{") else None
    return Call(call.name, dict(arguments)) if isinstance(arguments, Mapping) else call


def read_written_calls(row: Row, where: str, text: str) -> list[dict[str, Any]]:
    """Calls that a file writes as text, in any form that `read_calls` knows."""
    calls = read_calls(text)
    if not calls:
        raise row.bad(f"{where}: the call {text[:80]!r} cannot be read", "a tool call that cannot be read")
    return [write_declared_call(row, where, call) for call in calls]


def write_declared_call(row: Row, where: str, call: Call) -> dict[str, Any]:
    if call.problem:
        short = "the arguments of a tool call are no JSON object" if call.name else "a tool call without a name"
        raise row.bad(f"{where}: {call.problem}", short)
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def read_offered_tools(row: Row) -> list[dict[str, Any]]:
    """The tools that a row offers, each as {"type": "function", "function": {...}}."""
    column = next((name for name in TOOLS if row.get(name)), None)
    if column is None or (isinstance(row[column], str) and row[column].strip() in NOTHING):
        return []
    try:
        functions = list_tool_functions(row[column])
    except ValueError as error:
        raise row.bad(f"column {column!r}: {error}", f"{column!r} is no list of tools with names") from None
    return [
        {"type": "function", "function": {k: v for k, v in drop_nulls_in_objects(f).items() if k != "type"}}
        for f in functions
    ]

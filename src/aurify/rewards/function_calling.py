"""Rewards for function calls: valid under the tool's schema, the right name, the right arguments.

What was called is read from the messages (`tool_calls`), or from the text: `<tool_call>{...}</tool_call>`, a fenced or
bare JSON object with `name` and `arguments`, or a list of them. What was wanted stands in the task's column `calls`
(or its answer, as JSON), and the tools in the column `tools`, as OpenAI writes them. A task whose `calls` are an empty
list wants an answer without any call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.types import Task, Trajectory

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Any  # a mapping, if the call is well formed


def call_of(value: Any) -> Call | None:
    """From {name, arguments}, also below `function`; arguments (or parameters) as an object or as JSON text."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    return Call(value["name"], arguments)


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def calls_in(trajectory: Trajectory) -> list[Call | None]:
    """Every call of the reply; None for one that cannot be read."""
    found: list[Call | None] = []
    for message in trajectory.replies:
        if declared := message.get("tool_calls"):
            found += [call_of(call) for call in declared]
        else:
            found += calls_of_text(str(message.get("content") or ""))
    return found


def calls_of_text(text: str) -> list[Call | None]:
    tagged = TAGGED.findall(text)
    if tagged:
        return [call for piece in tagged for call in calls_of_json(piece.strip())]
    whole = text.rpartition("</think>")[2].strip()
    for piece in [*FENCED.findall(whole), whole]:
        if piece.strip().startswith(("{", "[")) and (calls := calls_of_json(piece.strip())) and any(calls):
            return calls
    return []


def calls_of_json(text: str) -> list[Call | None]:
    value = read_json(text)
    return [call_of(entry) for entry in (value if isinstance(value, list) else [value])]


def wanted_calls(task: Task) -> list[Call] | None:
    """None where the task says nothing about calls."""
    wanted = task.info.get("calls")
    if wanted is None:
        wanted = read_json(task.answer) if task.answer else None
        wanted = [wanted] if isinstance(wanted, Mapping) else wanted
    elif isinstance(wanted, str):
        wanted = read_json(wanted)
    if not isinstance(wanted, list):
        if "calls" in task.info:
            raise ValueError(f"task {task.id!r}: its calls are {task.info['calls']!r}; expected a list of calls")
        return None
    calls = [call_of(entry) for entry in wanted]
    unreadable = [entry for entry, call in zip(wanted, calls, strict=True) if call is None]
    if unreadable:
        raise ValueError(f"task {task.id!r}: the call {unreadable[0]!r} has no name")
    return [call for call in calls if call is not None]


def call_valid(task: Task, trajectory: Trajectory) -> float | None:
    """The share of the calls that name a tool of the task and satisfy its schema; 0 without any call, unless none is
    wanted. None for tasks without tools."""
    tools = task.info.get("tools")
    if not tools:
        return None
    schemas = {tool.get("function", tool)["name"]: tool.get("function", tool).get("parameters", {}) for tool in tools}
    calls = calls_in(trajectory)
    if not calls:
        return float(wanted_calls(task) == [])
    valid = [
        call is not None
        and call.name in schemas
        and isinstance(call.arguments, Mapping)
        and not violation(call.arguments, {"type": "object", **schemas[call.name]})
        for call in calls
    ]
    return sum(valid) / len(valid)


def call_name(task: Task, trajectory: Trajectory) -> float | None:
    """How well the names of the calls agree with those wanted, in any order: the F1 of both lists."""
    wanted = wanted_calls(task)
    if wanted is None:
        return None
    return agreement([call.name if call else None for call in calls_in(trajectory)], [call.name for call in wanted])


def call_arguments(task: Task, trajectory: Trajectory) -> float | None:
    """The same of whole calls: the name and all arguments."""
    wanted = wanted_calls(task)
    return None if wanted is None else agreement(calls_in(trajectory), wanted)


def function_call(task: Task, trajectory: Trajectory) -> float | None:
    """1 if exactly the wanted calls were made, in any order, else 0."""
    agreed = call_arguments(task, trajectory)
    return None if agreed is None else float(agreed == 1.0)


def agreement(made: Sequence[Any], wanted: Sequence[Any]) -> float:
    """2 * (entries in both) / (entries of both); 1 where both are empty."""
    if not made and not wanted:
        return 1.0
    left = list(wanted)
    for entry in made:
        for place, other in enumerate(left):
            if entry is not None and same(entry, other):
                del left[place]
                break
    return 2 * (len(wanted) - len(left)) / (len(made) + len(wanted))


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    if isinstance(a, Call) and isinstance(b, Call):
        return a.name == b.name and same(a.arguments, b.arguments)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def violation(value: Any, schema: Mapping[str, Any], place: str = "arguments") -> str | None:
    """The first thing in which a value breaks a JSON schema. Looked at are type, enum, const, required, properties,
    additionalProperties, items, minItems, maxItems, minimum, maximum, minLength, maxLength, pattern, anyOf, oneOf and
    allOf."""
    return (
        violation_of_kind(value, schema, place)
        or violation_of_parts(value, schema, place)
        or violation_of_bounds(value, schema, place)
    )


def violation_of_kind(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_of(value, kind) for kind in kinds):
        return f"{place} is {value!r}, not of type {' or '.join(kinds)}"
    if "enum" in schema and not any(same(value, entry) for entry in schema["enum"]):
        return f"{place} is {value!r}, none of {schema['enum']}"
    if "const" in schema and not same(value, schema["const"]):
        return f"{place} is {value!r}, not {schema['const']!r}"
    for part in schema.get("allOf", []):
        if problem := violation(value, part, place):
            return problem
    if "anyOf" in schema and all(violation(value, part, place) for part in schema["anyOf"]):
        return f"{place} is {value!r}, which fits no alternative"
    if "oneOf" in schema and sum(not violation(value, part, place) for part in schema["oneOf"]) != 1:
        return f"{place} is {value!r}, which does not fit exactly one alternative"
    return None


def is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES.get(kind, ()))


def violation_of_parts(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    if isinstance(value, Mapping):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", []):
            if name not in value:
                return f"{place}.{name} is missing"
        for name, entry in value.items():
            if name not in properties and more is False:
                return f"{place}.{name} is unknown"
            part = properties.get(name, more if isinstance(more, Mapping) else {})
            if problem := violation(entry, part, f"{place}.{name}"):
                return problem
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, entry in enumerate(value):
            if problem := violation(entry, schema["items"], f"{place}[{number}]"):
                return problem
    return None


def violation_of_bounds(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    measures: list[tuple[str, str, Any]] = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        measures.append(("minimum", "maximum", value))
    if isinstance(value, str):
        measures.append(("minLength", "maxLength", len(value)))
    if isinstance(value, list):
        measures.append(("minItems", "maxItems", len(value)))
    for least, most, size in measures:
        if (least in schema and size < schema[least]) or (most in schema and size > schema[most]):
            return f"{place} is {value!r}, outside {least} {schema.get(least)}, {most} {schema.get(most)}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{place} is {value!r}, which does not match {schema['pattern']!r}"
    return None

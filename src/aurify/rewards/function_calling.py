"""Rewards for function calls: valid under the tool's schema, the right name, the right arguments.

What was called is read by `aurify.tools.calls`: from the messages (`tool_calls`), or from the text after the thoughts.
What was wanted stands in the task's column `calls`, or in its answer, and the tools in the column `tools`. A task whose
`calls` are an empty list wants an answer without any call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from aurify.rewards.answers import take_answer, to_answer_list
from aurify.rows.values import parse_json_value, parse_printed_value
from aurify.tools.calls import Call, read_call, read_calls, read_message_calls, unpack_calls
from aurify.tools.schema import find_schema_violation, read_tool_schemas
from aurify.types import Task, Trajectory

T = TypeVar("T")


def call_valid(task: Task, trajectory: Trajectory) -> float | None:
    """The share of the calls that name a tool of the task and satisfy its schema; 0 without any call, unless none is
    wanted. None for tasks without tools."""
    schemas = read_tool_schemas(offered_tools(task, trajectory))
    if not schemas:
        return None
    calls = list_judged_calls(task, trajectory)
    if not calls:
        return float(read_gold_calls(task) == [])
    valid = [
        not call.problem and call.name in schemas and not find_schema_violation(call.arguments, schemas[call.name])
        for call in calls
    ]
    return sum(valid) / len(valid)


def call_name(task: Task, trajectory: Trajectory) -> float | None:
    """How well the names of the calls agree with those wanted, in any order: the F1 of both lists."""
    wanted = read_gold_calls(task)
    return (
        None
        if wanted is None
        else rate_call_agreement(list_judged_calls(task, trajectory), wanted, lambda a, b: a.name == b.name)
    )


def call_arguments(task: Task, trajectory: Trajectory) -> float | None:
    """How well whole calls, names with all arguments, agree with those wanted, in any order: the F1 of both lists."""
    wanted = read_gold_calls(task)
    return (
        None if wanted is None else rate_call_agreement(list_judged_calls(task, trajectory), wanted, equals_gold_call)
    )


def function_call(task: Task, trajectory: Trajectory) -> float | None:
    """1 if exactly the wanted calls were made, in any order, else 0."""
    agreed = call_arguments(task, trajectory)
    return None if agreed is None else float(agreed == 1.0)


def list_judged_calls(task: Task, trajectory: Trajectory) -> list[Call]:
    """Every call that the policy made. A thought that never ends counts as one that cannot be read."""
    tools, replies = offered_tools(task, trajectory), trajectory.replies
    unfinished = take_answer(trajectory) is None and not replies[-1].get("tool_calls")
    calls = [call for message in replies[: -1 if unfinished else None] for call in read_message_calls(message, tools)]
    return [*calls, Call("", {}, "the thought never ends")] if unfinished else calls


def read_gold_calls(task: Task) -> list[Call] | None:
    """None where the task says nothing about calls."""
    given = to_answer_list(task.info.get("calls"))
    if given is None:
        answer = (task.answer or "").strip()
        calls = read_calls(answer) if answer else []
        if not calls and answer != "[]":
            return None
    else:
        found = parse_json_value(given)
        if isinstance(found, str) and found.lstrip()[:1] in ("[", "{"):
            found = parse_printed_value(found)
        found = [found] if isinstance(found, Mapping) else found
        if isinstance(found, list):
            calls = [
                call for entry in unpack_calls(list(map(parse_json_value, found))) for call in read_gold_call(entry)
            ]
        elif not isinstance(given, str) or not (calls := read_calls(given)):
            raise ValueError(f"task {task.id!r}: its calls are {given!r}; expected a list of calls")
    problems = [call.problem for call in calls if call.problem]
    if problems:
        raise ValueError(f"task {task.id!r}: {problems[0]}")
    return calls


class Accepted(dict[str, list[Any]]):
    """The values that each argument may have. "" among them: it may be left out."""


def read_gold_call(entry: Any) -> list[Call]:
    """The call in an entry; those that a text of Python makes. {"f": {"a": [1, 2]}} is one of BFCL, which lists the
    values that an argument may have."""
    if isinstance(entry, str) and (calls := read_calls(entry)):
        return calls
    if isinstance(entry, Mapping) and len(entry) == 1 and not {"function", "function_call"} & entry.keys():
        [(name, arguments)] = entry.items()
        if isinstance(arguments, Mapping):
            listed = arguments and all(isinstance(value, list) for value in arguments.values())
            return [Call(name, Accepted(arguments) if listed else dict(arguments))]
    return [read_call(entry)]


def offered_tools(task: Task, trajectory: Trajectory) -> Any:
    """Those of the task's column, else of the environment."""
    tools = to_answer_list(task.info.get("tools"))
    return trajectory.tools if tools is None else tools


def rate_call_agreement(made: Sequence[T], wanted: Sequence[T], equal: Callable[[T, T], bool]) -> float:
    """2 * (entries in both) / (entries of both); 1 where both are empty."""
    if not made and not wanted:
        return 1.0
    left = list(wanted)
    for entry in made:
        index = next((k for k, other in enumerate(left) if equal(entry, other)), None)
        if index is not None:
            del left[index]
    return 2 * (len(wanted) - len(left)) / (len(made) + len(wanted))


def equals_gold_call(made: Call, wanted: Call) -> bool:
    """An argument that is null counts as left out: parquet fills with nulls what a call does not have."""
    same_name = not made.problem and made.name == wanted.name
    given = drop_null_arguments(made.arguments)
    if isinstance(wanted.arguments, Accepted):
        known = given.keys() <= wanted.arguments.keys()
        accepted = (accepts_gold_argument(name, given, each) for name, each in wanted.arguments.items())
        return same_name and known and all(accepted)
    return same_name and equals_gold_argument(given, drop_null_arguments(wanted.arguments))


def accepts_gold_argument(name: str, given: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    if name not in given:
        return "" in accepted
    return any(equals_gold_argument(given[name], value) for value in accepted)


def drop_null_arguments(value: Any) -> Any:
    """Without entries that are null, or hold nulls alone, at any depth."""
    if isinstance(value, list):
        return [drop_null_arguments(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    kept = {key: (drop_null_arguments(entry), entry) for key, entry in value.items() if entry is not None}
    return {key: plain for key, (plain, entry) in kept.items() if plain != {} or entry == {}}


def equals_gold_argument(a: Any, b: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equals_gold_argument(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equals_gold_argument, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b

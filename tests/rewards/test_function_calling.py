"""Function calls: read from messages and from text, checked against the schema and against what was wanted."""

from __future__ import annotations

import json
import re

import pytest
from said import rewarded, said

from aurify.rewards.function_calling import (
    Call,
    call_arguments,
    call_name,
    call_valid,
    calls_in,
    function_call,
    violation,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "unit": {"enum": ["C", "F"]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ROME = {"name": "weather", "arguments": {"city": "Rome"}}
TEXT = f"<tool_call>{json.dumps(ROME)}</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"I look it up.\n{TEXT}\n",
        f"<tool_call>\n{json.dumps(ROME)}",  # the closing tag was a stop token
        json.dumps(ROME),
        json.dumps([ROME]),
        f"<think>hm {{</think>\n```json\n{json.dumps(ROME)}\n```",
        json.dumps({"name": "weather", "parameters": {"city": "Rome"}}),
        json.dumps({"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}),
    ],
)
def test_calls_are_read_from_text(text):
    assert calls_in(said(text)) == [Call("weather", {"city": "Rome"})]


def test_calls_are_read_from_messages():
    calls = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
    assert calls_in(said("", tool_calls=calls)) == [Call("weather", {"city": "Rome"})]
    assert calls_in(said("It is warm in Rome. {sic}")) == []
    assert calls_in(said("<tool_call>{broken</tool_call>")) == [None]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "Rome", "days": 3, "unit": "C", "tags": ["a"]}, None),
        ({"city": "Rome", "days": 3.0}, None),
        ({}, "arguments.city is missing"),
        ({"city": 3}, "arguments.city is 3, not of type string"),
        ({"city": ""}, "outside minLength 1"),
        ({"city": "Rome", "days": True}, "not of type integer"),
        ({"city": "Rome", "days": 8}, "outside minimum 1, maximum 7"),
        ({"city": "Rome", "unit": "K"}, "none of"),
        ({"city": "Rome", "tags": ["a", 1]}, r"arguments.tags\[1\] is 1"),
        ({"city": "Rome", "town": "x"}, "arguments.town is unknown"),
    ],
)
def test_schema(arguments, problem):
    found = violation(arguments, WEATHER["function"]["parameters"])
    assert found is None if problem is None else re.search(problem, str(found))
    text = json.dumps({"name": "weather", "arguments": arguments})
    assert rewarded(call_valid, text, tools=[WEATHER]) == float(problem is None)


def test_alternatives_of_a_schema():
    either = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert violation(None, either) is None and violation(3, either)
    one = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    assert violation(1.5, one) is None and violation(1, one)
    assert violation("ab", {"allOf": [{"type": "string"}, {"pattern": "^a"}]}) is None
    assert (
        violation("b", {"pattern": "^a"}) and violation(1, {"const": True}) and not violation(None, {"type": ["null"]})
    )


def test_validity():
    assert rewarded(call_valid, TEXT, tools=[WEATHER]) == 1.0
    assert rewarded(call_valid, TEXT + '<tool_call>{"name": "other"}</tool_call>', tools=[WEATHER]) == 0.5
    assert rewarded(call_valid, "<tool_call>{", tools=[WEATHER]) == 0.0
    assert rewarded(call_valid, "No call.", tools=[WEATHER]) == 0.0
    assert rewarded(call_valid, "No call.", tools=[WEATHER], calls=[]) == 1.0
    assert rewarded(call_valid, TEXT) is None


def test_names_and_arguments():
    """One of two wanted calls was made right, and nothing else: F1 = 2 * 1 / (1 + 2)."""
    two = [{"name": "weather", "arguments": {"city": "Oslo"}}, ROME]
    assert rewarded(call_name, TEXT, calls=two) == rewarded(call_arguments, TEXT, calls=two) == pytest.approx(2 / 3)
    assert rewarded(call_name, TEXT + TEXT, calls=two) == 1.0
    assert rewarded(call_arguments, TEXT + TEXT, calls=two) == 0.5  # the same call twice counts once
    assert rewarded(function_call, TEXT, calls=two) == 0.0
    assert (
        rewarded(function_call, "".join(f"<tool_call>{json.dumps(c)}</tool_call>" for c in two[::-1]), calls=two) == 1.0
    )
    assert rewarded(function_call, TEXT, answer=json.dumps(ROME)) == 1.0
    assert rewarded(function_call, TEXT, calls=[]) == 0.0
    assert rewarded(function_call, "No call.", calls=[]) == 1.0
    assert rewarded(function_call, TEXT, answer="warm") is None
    one = {"name": "weather", "arguments": {"city": 1}}
    assert rewarded(function_call, '{"name": "weather", "arguments": {"city": true}}', calls=[one]) == 0.0


def test_a_task_whose_calls_cannot_be_read_is_masked():
    for calls in ([{"city": "Rome"}], "weather(Rome)"):
        with pytest.raises(ValueError, match="task 't/1'"):
            rewarded(function_call, TEXT, calls=calls)

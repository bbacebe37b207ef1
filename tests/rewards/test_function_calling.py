"""Function calls: read from messages and from text, checked against the schema and against what was wanted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from said import rewarded

from aurify.rewards.function_calling import call_arguments, call_name, call_valid, function_call

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


def test_the_schema_decides():
    for arguments, valid in (
        ({"city": "Rome", "days": 3, "unit": "C", "tags": ["a"]}, True),
        ({"city": "Rome", "days": 3.0}, True),
        ({}, False),
        ({"city": 3}, False),
        ({"city": ""}, False),
        ({"city": "Rome", "days": True}, False),
        ({"city": "Rome", "days": 8}, False),
        ({"city": "Rome", "unit": "K"}, False),
        ({"city": "Rome", "tags": ["a", 1]}, False),
        ({"city": "Rome", "town": "x"}, False),
    ):
        text = json.dumps({"name": "weather", "arguments": arguments})
        assert rewarded(call_valid, text, tools=[WEATHER]) == float(valid), arguments


def test_validity():
    assert rewarded(call_valid, TEXT, tools=[WEATHER]) == 1.0
    assert rewarded(call_valid, TEXT + '<tool_call>{"name": "other"}</tool_call>', tools=[WEATHER]) == 0.5
    assert rewarded(call_valid, "<tool_call>{", tools=[WEATHER]) == 0.0
    assert rewarded(call_valid, "No call.", tools=[WEATHER]) == 0.0
    assert rewarded(call_valid, "No call.", tools=[WEATHER], calls=[]) == 1.0
    assert rewarded(call_valid, TEXT) is None
    assert rewarded(call_valid, TEXT, tools="[]") is None
    assert rewarded(call_valid, TEXT, tools=json.dumps([WEATHER])) == 1.0
    assert rewarded(call_valid, TEXT, tools=np.array([WEATHER], dtype=object)) == 1.0


def test_calls_of_thoughts_do_not_count():
    right, wrong = f"<think>Perhaps {TEXT}?</think>", "<tool_call>{}</tool_call>"
    for reward in (function_call, call_name, call_arguments):
        assert rewarded(reward, right + "It is warm.", calls=[ROME]) == 0.0
        assert rewarded(reward, right.removesuffix("</think>"), calls=[ROME]) == 0.0
        assert rewarded(reward, f"<think>{wrong}</think>{TEXT}", calls=[ROME]) == 1.0
        assert rewarded(reward, right + "It is warm.", calls=[]) == 1.0
        assert rewarded(reward, "<think>Perhaps I", calls=[]) == 0.0, "no answer is not an answer without a call"
    assert rewarded(call_valid, right + "It is warm.", tools=[WEATHER]) == 0.0
    assert rewarded(call_valid, "<think>Perhaps I", tools=[WEATHER], calls=[]) == 0.0
    declared = {"tool_calls": [{"type": "function", "function": ROME}]}
    assert rewarded(function_call, "<think>hm</think>", message=declared, calls=[ROME]) == 1.0


@pytest.mark.parametrize(
    "calls",
    [
        [ROME],
        ROME,
        json.dumps([ROME]),
        json.dumps(ROME),
        [json.dumps(ROME)],
        np.array([ROME], dtype=object),
        [{"function": ROME, "type": "function", "id": "1"}],
        [{"name": "weather", "arguments": '{"city": "Rome"}'}],
        [{"name": "weather", "arguments": {"city": "Rome", "days": None, "near": {"lake": None, "hills": None}}}],
        "[weather(city='Rome')]",
        TEXT,
    ],
)
def test_wanted_calls_as_files_have_them(calls):
    assert rewarded(function_call, TEXT, calls=calls) == 1.0
    assert rewarded(function_call, TEXT.replace("Rome", "Oslo"), calls=calls) == 0.0
    if isinstance(calls, str):
        assert rewarded(function_call, TEXT, answer=calls) == 1.0


def test_values_are_compared_as_json():
    def agrees(made, wanted):
        text = json.dumps({"name": "f", "arguments": made})
        return rewarded(function_call, text, calls=[{"name": "f", "arguments": wanted}]) == 1.0

    assert agrees({"a": 1.0}, {"a": 1}) and agrees({"a": [{"b": None}]}, {"a": [{}]}) and agrees({"a": {}}, {"a": {}})
    assert agrees({"a": 1, "b": None}, {"a": 1})
    assert not agrees({"a": "1"}, {"a": 1})
    assert not agrees({"a": True}, {"a": 1})
    assert not agrees({"a": [1, 2]}, {"a": [2, 1]})
    assert not agrees({"a": {}}, {})
    assert not agrees({"body": {"x": 1}}, {"body": '{"x": 1}'})


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


BROUGHT = [json.loads(line) for line in (Path(__file__).parent / "calls_and_tools.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", [row for row in BROUGHT if "tools" in row], ids=str)
def test_tools_as_people_bring_them(row):
    """Types of other dialects, references, choices, limits as text, wrappers of every vendor."""
    call = json.dumps({"name": "f", "arguments": row["arguments"]})
    assert rewarded(call_valid, f"<tool_call>{call}</tool_call>", tools=row["tools"]) == row["reward"]


@pytest.mark.parametrize("row", [row for row in BROUGHT if "calls" in row], ids=str)
def test_wanted_calls_as_people_bring_them(row):
    """Text, JSON in a text, what Python prints, nulls of parquet, and BFCL's lists of values that are accepted."""
    assert rewarded(function_call, row["reply"], calls=row["calls"]) == row["reward"]

"""Calls as models of fifty families write them, whole or damaged, alone or several; and texts that are no calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurify.tools.calls import Call, read_calls

FORMS = [json.loads(line) for line in (Path(__file__).parent / "call_forms.jsonl").read_text().splitlines()]
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {"type": "string"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['calls']} {form['title']}")
def test_a_form(form):
    calls = read_calls(form["text"], TOOLS)
    if form["calls"] == "unreadable":
        assert len(calls) == 1 and "cannot be read" in calls[0].problem
    else:
        assert calls == [Call("get_weather", {"city": "Rome", "days": 3})] * form["calls"]


@pytest.mark.parametrize("form", [form for form in FORMS if form["calls"]], ids=lambda form: form["title"])
def test_no_form_is_a_call_in_a_thought(form):
    assert read_calls("<thinking>" + form["text"], TOOLS) == []
    assert read_calls(form["text"] + "</think>No call.", TOOLS, opened=True) == []

"""What the chat templates that TRL keeps write as a call is read back as that call: thirty model families, no copies of
ours."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from jinja2 import TemplateError

from aurify.tools.calls import Call, read_calls

TRL = importlib.util.find_spec("trl")
TEMPLATES = sorted(Path(str(TRL.origin)).parent.glob("chat_templates/*.jinja")) if TRL else []
ARGUMENTS = {"a": 1, "b": 2.5, "zip": "75001"}
PARAMETERS = {"a": {"type": "integer"}, "b": {"type": "number"}, "zip": {"type": "string"}}
FUNCTION = {"name": "add", "description": "?", "parameters": {"type": "object", "properties": PARAMETERS}}
TOOLS = [{"type": "function", "function": FUNCTION}]
WITHOUT_CALLS = 26  # templates that leave calls out, or take no text


def written(template, arguments):
    """What the template makes of a call after its prompt."""
    from transformers.utils.chat_template_utils import render_jinja_template

    call = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": arguments}}
    question = {"role": "user", "content": "?"}
    reply = {"role": "assistant", "content": "", "reasoning_content": "Adding.", "tool_calls": [call]}
    options = {"tools": TOOLS, "chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    texts = [
        render_jinja_template([messages], add_generation_prompt=generate, **options)[0][0]
        for messages, generate in (([question], True), ([question, reply], False))
    ]
    return texts[1].removeprefix(os.path.commonprefix(texts))  # noqa: RUF071 - texts, not paths


def test_calls_as_the_templates_write_them():
    pytest.importorskip("trl")
    skipped = []
    for path in TEMPLATES:
        template, said = path.read_text(), ""
        for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
            try:
                said = said or written(template, arguments)
            except (TemplateError, TypeError):
                continue
        if "add" not in said:
            skipped.append(path.name)
            continue
        assert read_calls(said, TOOLS) == [Call("add", ARGUMENTS)], path.name
    assert len(skipped) <= WITHOUT_CALLS, skipped
    assert len(TEMPLATES) - len(skipped) >= 30

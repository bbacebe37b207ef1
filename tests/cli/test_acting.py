"""`aurify chat --tools` and `--act`: an environment answers the model, as in training."""

from __future__ import annotations

import asyncio
import json

import pytest
import tokenizers_in_code as made

from aurify.cli.acting import find_chat_environment
from aurify.cli.chat import converse
from aurify.cli.writer import Writer
from aurify.environments.search_r1 import SearchR1
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams, Task

CALL = f"<tool_call>{json.dumps({'name': 'calculator', 'arguments': {'expression': '12*34'}})}</tool_call>"


class Model:
    """What find_model finds, with the options of its stage."""

    name = "m"

    def __init__(self, **options) -> None:
        self.options = options

    def stage_options(self):
        return self.options


def talk(monkeypatch, capsys, factory, replies, *lines):
    tokenizer = made.byte_level()
    waiting = iter(lines)

    def read(prompt=""):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    sampler = ScriptedSampler(replies, tokenizer)
    sampler.max_context = 10_000
    with asyncio.Runner() as runner:
        writer = Writer(sampler, Renderer(tokenizer, tools_as_text=True), runner)
        converse(writer, SamplingParams(max_tokens=200), "", None, factory)
    return [tokenizer.decode(prompt) for prompt in sampler.prompts], capsys.readouterr().out


def test_tools_answer_and_the_conversation_remembers_it(monkeypatch, capsys):
    factory = find_chat_environment(Model(), ["calculator"], act=False)
    replies = [CALL, "It is 408.", "You are welcome."]
    shown, printed = talk(monkeypatch, capsys, factory, replies, "what is 12 * 34?", "thanks")
    assert len(shown) == 3 and "408" in shown[1] and "thanks" in shown[2] and "It is 408." in shown[2]
    lines = printed.splitlines()
    assert [line.partition("> ")[0] for line in lines if "> " in line][:3] == ["model", "tool", "model"]
    assert any(line == "tool> 408" for line in lines) and any(line == "model> It is 408." for line in lines)


def test_act_takes_the_environment_of_the_stage(monkeypatch, capsys):
    factory = find_chat_environment(Model(task={"name": "multiplication", "tools": ["calculator"]}), (), act=True)
    assert isinstance(factory(Task("t", [{"role": "user", "content": "x"}])), ToolUse)
    search = {"name": "sorting", "environment": {"name": "search_r1", "max_searches": 1}}
    factory = find_chat_environment(Model(task=search), (), act=True)
    assert isinstance(factory(Task("t", [{"role": "user", "content": "x"}])), SearchR1)
    replies = ["<search> he </search>", "<answer> Lima </answer>"]
    _, printed = talk(monkeypatch, capsys, factory, replies, "where?")
    assert "No searches are left" in printed and "<answer> Lima </answer>" in printed
    assert find_chat_environment(Model(), (), act=False) is None


def test_what_an_environment_cannot_do_takes_the_question_back(monkeypatch, capsys):
    class Broken(ToolUse):
        def step(self, message):
            raise RuntimeError("gone")

    shown, printed = talk(monkeypatch, capsys, lambda task: Broken(task, ["calculator"]), ["x"], "first", "second")
    assert "gone" in printed and "first" not in shown[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "was trained without a task"), ({"task": ["sorting", "addition"]}, "mixes several tasks")],
)
def test_a_stage_without_one_environment_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        find_chat_environment(Model(**options), (), act=True)

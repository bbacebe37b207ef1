"""The answer after a thought, for the tags of known models; none where the thought never ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from said import said, task_of

from aurify.rewards.answers import read_answer
from aurify.rewards.function_calling import function_call
from aurify.rewards.math import number_match
from aurify.thoughts import CLOSINGS, final_answer
from aurify.types import Trajectory


@pytest.mark.parametrize(("opening", "closing"), CLOSINGS.items())
def test_the_tags_of_known_models(opening, closing):
    for first, last in ((opening, closing), (opening.upper(), closing.upper())):
        assert final_answer(f"{first}\nIs it 4? {last}\n\nIt is 5.") == "\n\nIt is 5."
        assert final_answer(f"{first}\nIs it 4? {last}") == ""
        assert final_answer(f"{first}\nIs it 4?") is None
        assert final_answer(f"It is 5. {first} or 4?") is None, "a thought after the answer goes on"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 5.", "It is 5."),
        ("", ""),
        ("Is it 4?</think>5", "5"),  # the prompt has opened the thought
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>b<think>c", None),
        ("<think>Tags such as <think> are odd.</think>5", "5"),
        ("<reasoning>a <think>b</think> c", None),
        ("<reasoning>a <think>b</think> c</reasoning>5", "5"),
        ("<think>a</thinking>b", None),
        ("<think></think>5", "5"),
        ("if a < think > b: 5", "if a < think > b: 5"),
        ("42<|end|>", "42<|end|>"),  # Phi's end of a turn
        ("<|channel|>analysis<|message|>4?<|end|><|start|>assistant<|channel|>final<|message|>5", "5"),
        ("<|channel|>analysis<|message|>4?<|channel|>final<|message|>5", "5"),
        ("<|channel|>final<|message|>5", "5"),
        ("<|channel|>analysis<|message|>4?", None),
    ],
)
def test_what_is_left(text, answer):
    assert final_answer(text) == answer


def test_a_thought_that_the_prompt_has_opened():
    assert final_answer("Is it 4?", opened=True) is None
    assert final_answer("Is it 4?</think>5", opened=True) == "5"
    assert final_answer("Is it <think>4?[/THINK]5", opened=True) == "5"


def test_a_reply_that_begins_in_a_thought_of_its_prompt():
    """As with DeepSeek-R1 and Qwen3-Thinking, whose templates open the thought."""
    opened = replace(said("The answer is 4."), opened_thought=True)
    assert read_answer(opened) is None and number_match(task_of("4"), opened) == 0.0
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert function_call(task_of(calls=[{"name": "f"}]), replace(said(call), opened_thought=True)) == 0.0
    assert function_call(task_of(calls=[]), replace(said("No call."), opened_thought=True)) == 0.0
    closed = replace(said("Is it 5?</think>The answer is 4."), opened_thought=True)
    assert read_answer(closed) == "The answer is 4." and number_match(task_of("4"), closed) == 1.0


def test_the_answer_of_several_turns():
    turns = ["<think>a</think>first", "<think>b</think>second"]
    messages = [{"role": "user", "content": "?"}, *({"role": "assistant", "content": text} for text in turns)]
    assert read_answer(Trajectory([], messages, 1)) == "first\nsecond"
    messages.append({"role": "assistant", "content": "<think>third"})
    assert read_answer(Trajectory([], messages, 1)) is None
    assert read_answer(said("whole")) == "whole"
    assert read_answer(Trajectory([], messages[:1], 1)) == ""

"""Issue 13, held-out truth: which rows ask a held-out question."""

from __future__ import annotations

from typing import Any

import pytest

from aurify.data.example import Chat, Label, Pair, Text
from aurify.data.heldout import HeldOut, heldout_tasks, normalise_question
from aurify.tasks.taskset import question
from aurify.types import Message, Task

QUESTION = "Natalia sold “48” clips to Zoë\u2019s friends.\n\nHow many in all?"


def chat(*texts: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    said: list[Message] = [{"role": roles[k % 2], "content": text} for k, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


def held(*prompts: list[Message], **options: Any) -> HeldOut:
    return heldout_tasks([Task(f"{k}", prompt) for k, prompt in enumerate(prompts)], **options)


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        '  natalia SOLD "48" clips to Zoe\u0308\'s friends. How many\tin all? ',
        "Natalia\u00a0sold “48” clips to Zoë\u2019s fri\u00adends.\r\nHow many in all?\ufeff",
    ],
)
def test_one_question_in_any_spelling(text):
    heldout = held(question(QUESTION, "Be brief."))
    assert normalise_question(text) == normalise_question(QUESTION)
    assert heldout.holder(chat(text)) == "the task"
    assert heldout.holder_of_example(Chat(chat(text, "72", system="You are kind."))) == "the task"
    assert heldout.holder_of_example(Chat(chat("Hello", "Hi", text, "72"))) == "the task", "a later turn"
    assert heldout.holder_of_example(Pair(chat(text), chat("a")[:1], chat("b")[:1])) == "the task"
    assert heldout.holder_of_example(Label(chat(text), [{"role": "assistant", "content": "5"}], True)) == "the task"


@pytest.mark.parametrize("text", ["How many in all", "Natalia sold 49 clips. How many in all?", "clips", ""])
def test_another_question_is_none(text):
    heldout = held(question(QUESTION))
    assert heldout.holder(chat(text)) is None
    assert heldout.holder_of_example(Text(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Question: How many clips?\nAnswer: 72",
        "Solve this problem.\n\nhow many  clips?",
        "How many clips?\nThink step by step.",
        "Q1. How many clips?",
    ],
)
def test_a_question_inside_of_a_text_or_an_instruction(text):
    heldout = held(question("How many clips?"))
    assert heldout.holder_of_example(Text(text)) == "the task"
    assert heldout.holder(chat(text)) == "the task"


def test_the_context_of_a_pair_is_not_trained():
    heldout = held(question("hi"))
    answer: list[Message] = [{"role": "assistant", "content": "yes"}]
    assert heldout.holder_of_example(Pair(chat("hi", "hello", "How are you?"), answer, answer)) is None
    assert heldout.holder_of_example(Pair(chat("How are you?", "fine", "hi"), answer, answer)) == "the task"
    assert heldout.holder_of_example(Chat(chat("hi", "hello", "How are you?", "fine"))) == "the task"


def test_several_turns_are_one_question():
    heldout = HeldOut()
    heldout.add([chat("Hello", "Hi", "Yes")], "rows")
    assert heldout.holder(chat("yes")) is None, "it is no question by itself"
    assert heldout.holder(chat("hello", "Good day", "yes", "Fine", "Bye")) == "rows"
    assert held(chat("1+1?", "2", "3+4?")).holder(chat("3+4?")) == "the task", "after a worked example"


def test_what_many_prompts_share_is_no_question():
    heldout = held(*(chat("Go.", system=f"Tell of {k}") for k in range(5)))
    assert heldout.holder(chat("Go.", "once", system="Tell of 3")) == "the task"
    assert heldout.holder(chat("Go.", "once", system="Tell of 7")) is None
    assert heldout.holder(chat("Go.")) is None
    # the same questions with two system prompts each are questions all the same
    twice = held(*(chat(f"{k}+1?", system=text) for k in range(30) for text in ("Be brief.", "Be kind.")))
    assert twice.holder(chat("7+1?")) == "the task"


def test_a_set_does_not_hold_out_against_itself():
    heldout = held(question("1+1?"))
    assert heldout.holder(chat("1+1?"), but=["the task"]) is None
    heldout.add([question("2+2?")], "another")
    assert heldout.holder(chat("2+2?"), but=["the task"]) == "another"

"""Answers compared as mathematics: what is taken for the answer, what is equal, and what happens when it takes long."""

from __future__ import annotations

import asyncio
import time

import pytest
from said import rewarded

from aurify.errors import UserError
from aurify.rewards.answers import extract_answer, read_answer_boxes
from aurify.rewards.equality import Comparer, Comparers
from aurify.rewards.math import final_answer, math


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{3} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{7", ""),
        ("7", None),
    ],
)
def test_the_last_box(text, expected):
    assert read_answer_boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{4}. That is 5.", "4"),
        ("1 + 1 = 2\n#### 2", "2"),
        ("The answer is **x + 1**.", "x + 1"),
        ("answer: $2x$\nThe answer is $3x$.", "3x"),
        ("<think>the answer is 9</think> it is 8", "8"),
        ("<think>2</think><answer> 1/2 </answer>", "1/2"),
        ("first 12, then 1,300.5", "1,300.5"),
        ("I do not know", None),
    ],
)
def test_what_is_taken_for_the_answer(text, expected):
    assert extract_answer(final_answer(text)) == expected
    assert extract_answer("the answer is 5", "boxed") is None


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\frac{2}{4}}", "1/2", 1.0),
        (r"\boxed{x(x+1)}", "$x^2 + x$", 1.0),
        (r"\boxed{x(x-1)}", "x^2 + x", 0.0),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1.0),
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{(2, 1)}", "(1,2)", 0.0),
        ("18.0", "18", 1.0),
        ("#### 1,000", "so 1000\n#### 1000", 1.0),
        ("nothing", "1/2", 0.0),
        (r"\boxed{\undefined{{{}", "1/2", 0.0),
        ("the answer is 3", None, None),
    ],
)
def test_equality(text, gold, expected):
    assert rewarded(math(), text, gold) == expected


def test_several_answers_are_right():
    for text, expected in ((r"\boxed{-2}", 1.0), (r"\boxed{4/2}", 1.0), (r"\boxed{3}", 0.0)):
        assert rewarded(math(), text, "2", answers=["2", "-2"]) == expected


def test_an_expected_answer_that_nobody_can_read_says_nothing_about_the_reply():
    with pytest.raises(ValueError, match=r"the expected answer '.*' is no expression"):
        rewarded(math(), r"\boxed{\frac{1}{3}}", "\\")


def test_what_takes_too_long_is_not_equal_and_the_next_question_is_answered():
    pool = Comparers(1)
    assert pool.equal(["1/2"], "0.5", 60.0)  # it has started
    began = time.monotonic()
    assert not pool.equal(["2"], "9^{9^{9^{9^{9}}}}", 1.0)
    assert time.monotonic() - began < 4
    assert pool.equal(["1/2"], "2/4", 60.0)
    worker = pool.free.get()
    assert isinstance(worker, Comparer)
    worker.close()
    assert worker.process.poll() is not None


def test_answers_of_a_group_are_compared_at_the_same_time():
    """From threads, where math-verify's own time limits fail."""

    async def several():
        from said import said, task_of

        reward = math()
        texts = [rf"\boxed{{\frac{{{n}}}{{2}}}}" for n in range(8)]
        return await asyncio.gather(*(reward(task_of("1.5"), said(text)) for text in texts))

    assert asyncio.run(several()) == [0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "problem"), [({"extract": "all"}, "extract is 'all'"), ({"seconds": 0}, "above 0")]
)
def test_options(options, problem):
    with pytest.raises(UserError, match=problem):
        math(**options)

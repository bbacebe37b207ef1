"""Rewards of answers: numbers, text, shape, length."""

from __future__ import annotations

from decimal import Decimal

import pytest

from aurify.rewards.format import format_match, length_penalty
from aurify.rewards.math import number_match, numbers_match
from aurify.rewards.numbers import list_numbers
from aurify.rewards.text import contains_answer, exact_match
from aurify.types import Segment, Task, Trajectory


def reward(function, text, answer):
    messages = [{"role": "user", "content": "9, 5?"}, {"role": "assistant", "content": text}]
    return function(Task("t", messages[:1], answer), Trajectory([Segment([1], "prompt")], messages, 1))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The answer is **1,234.50**.", ["1234.5"]),
        ("3-5, 7 - 2 and -4 or \u22126", [3, 5, 7, 2, -4, -6]),
        ("1,2,3 and 5,12,44", [1, 2, 3, 5, 12, 44]),
        ("12,345,678 but 1,2345", [12345678, 1, 2345]),
        ("none", []),
    ],
)
def test_numbers_in(text, numbers):
    assert list_numbers(text) == [Decimal(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("The largest is 87.", "87", 1.0),
        ("87.0", "87", 1.0),
        ("$1,000", "1000", 1.0),
        ("187", "87", 0.0),
        ("12, 87, 5, 44, 63", "87", 0.0),  # naming them all does not pay
        ("87 is larger than 63", "87", 0.0),
        ("", "87", 0.0),
        ("87", None, None),
    ],
)
def test_number_match(text, answer, expected):
    assert reward(number_match, text, answer) == expected


def test_number_match_without_a_number_to_match_is_an_error():
    with pytest.raises(ValueError, match="'Paris' of task 't' is no number; use exact_match"):
        reward(number_match, "7", "Paris")


@pytest.mark.parametrize(
    ("text", "expected"), [("Sorted: 1, 10, 12", 1.0), ("1 10 12", 1.0), ("1,12,10", 0.0), ("10, 12", 0.0)]
)
def test_numbers_match(text, expected):
    assert reward(numbers_match, text, "1, 10, 12") == expected


def test_text_matches():
    assert reward(exact_match, " dragon\n anchor. ", "Dragon anchor") == 1.0
    assert reward(exact_match, "the dragon anchor", "dragon anchor") == 0.0
    assert reward(contains_answer, "the dragon anchor", "dragon anchor") == 1.0
    assert reward(exact_match, "a", None) is None
    assert reward(contains_answer, "a", None) is None


def test_format_and_length():
    tagged = format_match("<a>.*</a>")
    assert reward(tagged, "\n<a>x\ny</a> ", None) == 1.0
    assert reward(tagged, "so <a>x</a>", None) == 0.0
    penalty = length_penalty(max_tokens=10, over=4)
    of_length = [Trajectory([Segment([0] * 50, "prompt"), Segment([0] * n, "policy")], [], 0) for n in (10, 12, 14, 99)]
    assert [penalty(None, trajectory) for trajectory in of_length] == [0.0, -0.5, -1.0, -1.0]

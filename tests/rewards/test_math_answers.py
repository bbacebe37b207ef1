"""What counts as the right mathematical answer: kinds that people reported, and neighbours of each."""

from __future__ import annotations

import pytest
from answer_cases import ANSWERS
from said import rewarded

from aurify.rewards.math import math, number_match


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers(kind):
    reward = math()
    wrong = [
        f"{reply!r} to {gold!r} earned {got}"
        for gold, reply, expected in ANSWERS[kind]
        if (got := rewarded(reward, reply, gold)) != expected
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("answers", "right", "wrong"),
    [
        ("12", "12", "2"),
        ("12", "12", "1"),
        (12, "12", "2"),
        (0.5, "1/2", "5"),
        (["12", 13], "13", "3"),
        ('["12", "13"]', "13", "3"),
        ({"text": ["12"], "answer_start": [3]}, "12", "3"),
        ('{"aliases": ["12", "a dozen"]}', "12", "3"),
        (["12", None], "12", "1"),
    ],
)
def test_the_column_answers_in_all_its_forms(answers, right, wrong):
    assert rewarded(math(), rf"\boxed{{{right}}}", "0", answers=answers) == 1.0
    assert rewarded(math(), rf"\boxed{{{wrong}}}", "0", answers=answers) == 0.0
    assert rewarded(math(), r"\boxed{0}", "0", answers=answers) == 0.0
    for nothing in ([], None, [None]):
        assert rewarded(math(), rf"\boxed{{{right}}}", right, answers=nothing) == 1.0
    with pytest.raises(ValueError, match=r"'t/1': its answers are .*; expected a list of texts"):
        rewarded(math(), "1", "0", answers={"value": "12"})


@pytest.mark.parametrize(
    ("gold", "reply", "expected"),
    [
        ("1/2", "2", 0.0),
        ("1/2", "It is 1/2.", 1.0),
        ("1/2", "0.5", 1.0),
        ("2", "It is 1/2.", 0.0),
        ("2", r"So \frac{1}{2}.", 0.0),
        ("2", r"It is \sqrt{2}.", 0.0),
        ("2", "x^2", 0.0),
        ("5", "The area is 5 cm^2.", 1.0),
        ("1000000", "10^6", 1.0),
        ("1200", r"1\,200", 1.0),
        ("1200", "1\u202f200", 1.0),
        (".5", "0.5", 1.0),
        ("5", "It is .5", 0.0),
        ("2", "101_2", 0.0),
        ("2023", "On 1/2/2023.", 1.0),
        ("5", "<think>5</think>I do not know.", 0.0),
        ("5", "<think>It is 5", 0.0),
        ("5", "<think>6</think>It is 5.", 1.0),
        ("so 5\n#### 6", "6", 1.0),
        ("9" * 5000, "9" * 5000, 1.0),
        ("1/0", "9^999/0", 0.0),
    ],
)
def test_the_last_number_is_read_with_what_belongs_to_it(gold, reply, expected):
    assert rewarded(number_match, reply, gold) == expected


def test_a_number_that_is_none():
    for gold in (r"\sqrt{2}", "x^2", "none"):
        with pytest.raises(ValueError, match="is no number; use exact_match or math"):
            rewarded(number_match, "2", gold)

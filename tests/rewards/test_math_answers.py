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


@pytest.mark.parametrize(
    ("gold", "reply", "expected"),
    [
        ("18", "She makes $18 per day.", 1.0),
        ("18", "#### 18", 1.0),
        ("18", "\\boxed{18}", 1.0),
        ("18", "**18**", 1.0),
        ("18", "18 dollars and 0 cents", 0.0),
        ("-3", "\u22123", 1.0),
        ("-3", "-$3", 1.0),
        ("-3", "The temperature is -3\xb0C.", 1.0),
        ("50", "50%", 1.0),
        ("50%", "50", 1.0),
        ("1/2", "0.5", 1.0),
        ("1/2", "\xbd", 1.0),
        ("1 1/2", "1.5", 1.0),
        ("1.5", "1 1/2", 1.0),
        ("1.5", "1\xbd", 1.0),
        ("1\\frac{1}{2}", "1.5", 1.0),
        ("3", "3.", 1.0),
        ("3", "3.0", 1.0),
        ("3", "3.00", 1.0),
        ("3", "03", 1.0),
        ("3", "III", 0.0),
        ("1200", "1.2e3", 1.0),
        ("1200", "1,200", 1.0),
        ("1200", "1 200", 1.0),
        ("1000000", "1 million", 1.0),
        ("1500000", "1.5 million", 1.0),
        ("12", "12 (twelve)", 1.0),
        ("7", "x=7", 1.0),
        ("7", "<answer>7</answer>", 1.0),
        ("7", "<think>8</think>7", 1.0),
        ("7", "10:07", 0.0),
        ("3", "step 3", 1.0),
        ("14", "2*7 = 14", 1.0),
        ("14", "2*7", 0.0),
        ("64", "2^6", 1.0),
        ("64", "2\u2076", 1.0),
        ("8", "\u221a64", 0.0),
        ("5", "5 cm\xb2", 1.0),
        ("5", "5 cm\xb3", 1.0),
        ("2.5", "2,5", 0.0),
        ("1000", "1.000", 0.0),
        ("5", "\u0665", 1.0),
        ("5", "\uff15", 1.0),
        ("$18", "18", 1.0),
        ("18 dollars", "18", 1.0),
        ("\xa31,250.50", "1250.5", 1.0),
        ("1,250.5", "1250.50", 1.0),
        ("-18", "-$18.00", 1.0),
        ("100", "1e2", 1.0),
        ("100", "10**2", 1.0),
        ("0", "-0", 1.0),
        ("1/3", "0.333", 0.0),
        ("1/3", "\\frac{1}{3}", 1.0),
        ("1/3", "\\dfrac{1}{3}", 1.0),
        ("-1/3", "-\\frac{1}{3}", 1.0),
        ("-1/3", "\\frac{-1}{3}", 1.0),
        ("1/3", "-\\frac{1}{3}", 0.0),
        ("3", "-3", 0.0),
        ("5", "3-5", 1.0),
        ("10", "5-10", 1.0),
        ("10", "10.", 1.0),
        ("10", "10,", 1.0),
        ("10", "10, right?", 1.0),
        ("3.14", "3.14.", 1.0),
        ("3", "3<|im_end|>", 1.0),
        ("3", "3</s>", 1.0),
    ],
)
def test_how_people_write_a_last_number(gold, reply, expected):
    assert rewarded(number_match, reply, gold) == expected

"""The reward that chooses: the declared kind first, then the answer's shape; no guess where neither shows."""

from __future__ import annotations

import asyncio

import pytest
from said import rewarded, said, task_of

from aurify import registry
from aurify.rewards.auto import KINDS, auto, kind_of
from aurify.rewards.rubric import build_rubric


@pytest.mark.parametrize(
    ("answer", "info", "kind"),
    [
        ("4", {"kind": "text"}, "text"),
        (None, {"tests": "assert True"}, "code"),
        ("x", {"inputs": [""], "outputs": [""]}, "code"),
        (None, {"calls": []}, "function_call"),
        ("1,234.5", {}, "number"),
        ("$18", {}, "number"),
        ("-3", {}, "number"),
        ("B", {}, "choice"),
        ("(C)", {}, "choice"),
        (r"\frac{1}{2}", {}, "math"),
        ("x^2 + 1", {}, "math"),
        ("1/2", {}, "math"),
        ("Marie Curie", {}, "exact"),
        ("well-known", {}, "exact"),
    ],
)
def test_the_rule(answer, info, kind):
    assert kind_of(task_of(answer, **info)) == kind


@pytest.mark.parametrize(
    ("answer", "info", "problem"),
    [
        (None, {}, "has no answer, no tests and no calls"),
        ("A long answer in words of its own, which nobody will repeat.", {}, "give the task a column 'kind'"),
        ("", {}, "give the task a column 'kind'"),
        ("4", {"kind": "maths"}, "kind 'maths'; did you mean 'math'"),
    ],
)
def test_no_guess(answer, info, problem):
    with pytest.raises(ValueError, match=problem):
        rewarded(auto, "4", answer, **info)


@pytest.mark.parametrize(
    ("text", "answer", "info", "value"),
    [
        ("It is 4.", "4", {}, 1.0),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", {}, 1.0),
        ("(B)", "B", {}, 1.0),
        ("marie curie.", "Marie Curie", {}, 1.0),
        ("def f(): return 1", None, {"tests": "assert f() == 1"}, 1.0),
        ("def f(): return 2", None, {"tests": "assert f() == 1"}, 0.0),
        ('{"name": "f"}', None, {"calls": [{"name": "f", "arguments": {}}]}, 1.0),
        ("a b", "a c", {"kind": "text"}, 0.5),
        ("so 1 2", "1, 2", {"kind": "numbers"}, 1.0),
    ],
)
def test_mixed_tasks(text, answer, info, value):
    assert rewarded(auto, text, answer, **info) == value


def test_every_kind_has_a_reward_and_auto_stands_in_recipes():
    for name in KINDS.values():
        registry.get_entry("reward", name)
    rubric, good = build_rubric("auto"), said("4")
    asyncio.run(rubric.score(task_of("4"), [good]))
    assert good.rewards == {"auto": 1.0}

"""Rewards of Search-R1, worked by hand (ALGORITHMS.md, 3.3)."""

from __future__ import annotations

import pytest
from said import rewarded

from aurify.rewards.search import (
    answer_em,
    answer_f1,
    answer_sub_em,
    is_well_formed_search_answer,
    retrieval_hit,
    search_format,
)
from aurify.rewards.text import exact_match
from aurify.types import Task, Trajectory


def played(*parts, prompt="Answer between <answer> tags, such as <answer> Lima </answer>"):
    """parts: what the policy wrote, and in a tuple what was put between."""
    messages = [{"role": "user", "content": prompt}]
    for part in parts:
        put = isinstance(part, tuple)
        message = {"role": "assistant", "content": part[0] if put else part}
        messages.append(message | ({"weight": 0.0} if put else {}))
    return Trajectory([], messages, 1)


def task(*golds):
    return Task("q", [], golds[0], {"answers": list(golds)})


@pytest.mark.parametrize(
    ("answer", "golds", "em", "sub", "f1"),
    [
        ("The  Beatles.", ["Beatles"], 1, 1, 1),
        ("lima", ["Bogota", "Lima"], 1, 1, 1),
        ("in Lima, Peru", ["Lima"], 0, 1, 0.5),
        ("Limassol", ["Lima"], 0, 0, 0),
        ("", ["Lima"], 0, 0, 0),
    ],
)
def test_answers(answer, golds, em, sub, f1):
    trajectory = played(f"<think>x</think><answer>{answer}</answer>")
    values = [reward(task(*golds), trajectory) for reward in (answer_em, answer_sub_em, answer_f1)]
    assert values == [em, sub, pytest.approx(f1)]


def test_the_prompts_example_is_no_answer():
    """The reference finds "Lima" in its own prompt (3.8)."""
    assert answer_em(task("Lima"), played("I give up")) == 0
    assert answer_em(task("Lima"), played("<answer>Lima")) == 0  # unfinished


def test_without_gold_answers_no_reward_applies():
    nothing = Task("q", [], None)
    assert [r(nothing, played("x")) for r in (answer_em, answer_sub_em, answer_f1, retrieval_hit, search_format())] == [
        None
    ] * 5


GOOD = "<think>a</think>"
SEARCH = "<search>b</search>", ("\n<information>the capital is Lima</information>\n",), "<think>c</think>"


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        ((GOOD, *SEARCH, "<answer>Lima</answer>"), 1.0),
        ((*SEARCH, "<answer>Lima</answer>"), 0.8),  # right, but it begins with a search
        ((GOOD, *SEARCH, "<answer>Rome</answer>"), 0.25),  # wrong, well formed, and a right answer was retrieved
        ((GOOD, "<answer>Rome</answer>"), 0.2),
        (("<answer>Rome</answer>",), 0.1),
        ((GOOD, *SEARCH), 0.0),
    ],
)
def test_the_format_aware_reward(parts, value):
    assert search_format(0.2, 0.1, 0.05)(task("Lima"), played(*parts)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("<think>a</think> <answer>b</answer>", True),
        ("<think>a</think>so<answer>b</answer>", False),
        ("<think>a<search>b</search></think><answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a</think><search>q</search><think>c</think><answer>b</answer>", False),
    ],
)
def test_the_automaton(text, valid):
    assert is_well_formed_search_answer(text) is valid


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>It is <answer>Paris</answer>", 0.0),
        ("<think><answer>Paris</answer></think>", 0.0),
        ("<think><answer>Rome</answer></think><answer>Paris</answer>", 1.0),
        ("[THINK]<answer>Paris</answer>", 0.0),
        ("<think>a</think><answer>Paris</answer><|im_end|>", 1.0),
    ],
)
def test_an_answer_in_a_thought_is_none_for_all_rewards(reply, expected):
    for reward in (answer_em, answer_sub_em, answer_f1, exact_match):
        assert rewarded(reward, reply, "Paris") == expected

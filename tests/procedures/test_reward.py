from __future__ import annotations

import asyncio
import json

import pytest
from said import rewarded, task_of

from aurify.errors import UserError
from aurify.procedures.reward import longest_sign_chain, procedure
from aurify.rewards.rubric import build_rubric
from aurify.types import Segment, Trajectory

SIGNS = [{"says": "order number"}, {"tool": "find_order"}, {"says": r"\d+ days"}, {"tool": "issue_refund"}]
REFUND = {"name": "refund", "signs": SIGNS}


def played(*turns):
    """Turns of the policy: a text, or (text, names of called tools); a tool answers each."""
    messages = [{"role": "user", "content": "?"}]
    for turn in turns:
        text, calls = turn if isinstance(turn, tuple) else (turn, ())
        declared = [{"function": {"name": name, "arguments": "{}"}} for name in calls]
        messages += [{"role": "assistant", "content": text, **({"tool_calls": declared} if calls else {})}]
        messages += [{"role": "tool", "content": "order number 5 days"}]
    return Trajectory([Segment([1], "prompt")], messages, 1)


def share(*turns, **options):
    return procedure(**options)(task_of(procedure=REFUND), played(*turns))


def test_all_steps_in_order_are_worth_one():
    turns = ("What is the order number?", ("", ["find_order"]), ("It takes 5 days.", ["issue_refund"]))
    assert share(*turns) == share(*turns, partial=False) == 1


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((), 0),
        (("It takes 5 days.",), 0.25),
        ((("", ["issue_refund"]), ("", ["find_order"])), 0.25),  # the wrong way round
        ((("", ["find_order", "issue_refund"]),), 0.5),  # one message with both calls
        ((("", ["issue_refund", "find_order", "issue_refund"]),), 0.5),  # a call too many does not hide the right ones
        (("5 days", "order number", ("", ["find_order"]), ("", ["issue_refund"])), 0.75),
        (("Order Number, then 5 days", ("", ["find_order"]), ("", ["issue_refund"])), 0.75),
        (("<think>order number 5 days</think>hm",), 0),  # what was only thought
    ],
)
def test_the_longest_chain_counts(turns, expected):
    assert share(*turns) == expected
    assert share(*turns, partial=False) == 0


def test_what_tools_and_people_say_does_not_count():
    assert share("hm", "hm") == 0  # although each tool answered with two of the signs


def test_calls_in_text_count_too():
    call = json.dumps({"name": "find_order", "arguments": {}})
    assert rewarded(procedure(), f"The order number?\n<tool_call>{call}</tool_call>", procedure=REFUND) == 0.5


def test_a_sign_that_is_wanted_twice_must_show_twice():
    twice = {"signs": [{"tool": "check"}, {"tool": "check"}]}
    assert procedure()(task_of(procedure=twice), played(("", ["check"]))) == 0.5
    assert procedure()(task_of(procedure=twice), played(("", ["check"]), ("", ["check"]))) == 1


def test_it_does_not_apply_without_a_procedure_or_signs():
    assert rewarded(procedure(), "x") is None
    assert rewarded(procedure(), "x", procedure={"signs": []}) is None
    with pytest.raises(ValueError, match=r"expected \{name"):
        rewarded(procedure(), "x", procedure="refund")


def test_a_recipe_can_name_it():
    rubric = build_rubric([{"name": "procedure", "partial": False, "weight": 2.0}])
    trajectory = played("order number")
    asyncio.run(rubric.score(task_of(procedure=REFUND), [trajectory]))
    assert trajectory.rewards == {"procedure": 0.0}
    with pytest.raises(UserError, match="has no option 'part'"):
        build_rubric([{"name": "procedure", "part": True}])


def test_the_longest_chain_by_trying_all(generator):
    from itertools import pairwise, product

    for _ in range(200):
        positions = [
            [(0, 0, int(position)) for position in generator.integers(0, 6, generator.integers(0, 4))] for _ in range(4)
        ]
        best = 0
        for chosen in product(*([None, *options] for options in positions)):
            kept = [position for position in chosen if position is not None]
            if all(one < other for one, other in pairwise(kept)):
                best = max(best, len(kept))
        assert longest_sign_chain(positions) == best

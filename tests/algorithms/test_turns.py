"""`credit: turn`, with numbers derived by hand."""

from __future__ import annotations

import pytest

from aurify.algorithms.dapo import DAPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.gspo import GSPO
from aurify.algorithms.rloo import RLOO
from aurify.algorithms.turns import turn_returns
from aurify.environments.rollout import build_data
from aurify.errors import UserError
from aurify.types import Group, Segment, Task, Trajectory, Turn

TASK = Task("t", [])


def make_trajectory(turns, reward, rewards=None, *, rows=False, **options):
    """Two tokens a turn. turns: what the environment gave in each. reward: of the whole, with those."""
    segments = [Segment([1], "prompt")]
    for k in range(len(turns)):
        segments.append(Segment([2, 3], "policy", [-1.0, -1.0]))
        segments.append(Segment([4], "prompt" if rows and k + 1 < len(turns) else "environment"))
    names = {name for given in turns for name in given} | {"judged"}
    rewards = dict.fromkeys(names, 1.0) if rewards is None else rewards
    return Trajectory(
        segments, [], 0, rewards, reward, turns=[Turn(2, 0.0, rewards=given) for given in turns], **options
    )


def test_returns_are_what_is_still_to_come():
    """The rubric gave 1 to the whole: r = (0.5, 0, 0.25 + 1), so G = r + 0.5 G_next = (0.8125, 0.625, 1.25)."""
    trajectory = make_trajectory([{"found": 0.5}, {}, {"found": 0.25}], 1.75)
    assert turn_returns(trajectory, {"judged": 1.0}, 0.5) == [0.8125, 0.625, 1.25]
    assert turn_returns(trajectory, {"judged": 1.0}, 1.0) == [1.75, 1.25, 1.25]
    # the rubric has the last word where both give a reward of one name; a reward that was masked counts nowhere
    assert turn_returns(trajectory, {"found": 1.0}, 1.0) == [1.75, 1.75, 1.75]
    masked = make_trajectory([{"found": 0.5}, {"found": None}], 1.0, {"found": None, "judged": 1.0})
    assert turn_returns(masked, {"judged": 1.0}, 0.5) == [0.5, 1.0]
    assert turn_returns(make_trajectory([{}, {}], None), {}, 1.0) == [0.0, 0.0]


def test_advantages_compare_turns_with_the_rollouts_of_the_group():
    """Returns (2, 1), (0) and (1): means of rollouts 1.5, 0, 1, mean 5/6; without scale the advantages are the
    differences. The deviation is over rollouts, with n - 1: (0.5 (49/36 + 1/36) + 25/36 + 1/36) / 2 = 51/72."""
    group = Group(
        TASK, [make_trajectory([{"a": 1.0}, {}], 2.0), make_trajectory([{}], 0.0), make_trajectory([{}], 1.0)]
    )
    [rows] = GRPO(scale="none", credit="turn").turn_advantages([group])
    assert [value for row in rows for value in row] == pytest.approx([7 / 6, 1 / 6, -5 / 6, 1 / 6])
    [scaled] = GRPO(credit="turn").turn_advantages([group])
    assert scaled[0][0] == pytest.approx(7 / 6 / ((51 / 72) ** 0.5 + 1e-4))


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_with_a_reward_of_the_whole_alone_it_is_grpo(scale):
    groups = [
        Group(TASK, [make_trajectory([{}] * n, r) for n, r in ((1, 0.0), (3, 1.0), (2, 1.0), (5, None))]),
        Group(TASK, [make_trajectory([{}] * 2, 0.5) for _ in range(3)]),
    ]
    expected = GRPO(scale=scale).advantages(groups)
    for rows, whole in zip(GRPO(scale=scale, credit="turn").turn_advantages(groups), expected, strict=True):
        for row, value in zip(rows, whole, strict=True):
            assert row == pytest.approx([value] * len(row))


@pytest.mark.parametrize("rows", [False, True])
def test_each_token_gets_that_of_its_turn(rows):
    data = build_data(make_trajectory([{}, {}, {}], 1.0, rows=rows), [0.5, -1.0, 2.0], unit=3)
    assert len(data) == (3 if rows else 1)
    trained = [a for d in data for a, w in zip(d.advantages, d.weights, strict=True) if w]
    assert trained == [0.5, 0.5, -1.0, -1.0, 2.0, 2.0]


def test_methods_that_give_one_advantage_to_a_whole_refuse_it():
    for method in (lambda: RLOO(credit="turn"), lambda: GSPO(credit="turn"), lambda: GRPO(discount=0.5)):
        with pytest.raises(UserError, match="has an effect only"):
            method()
    with pytest.raises(UserError, match="without max_length"):
        DAPO(credit="turn", max_length=20, buffer=5)
    assert GSPO(credit="turn", form="token").credit == DAPO(credit="turn").credit == "turn"

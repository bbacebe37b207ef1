from __future__ import annotations

import numpy as np
import pytest

from aurify.errors import UserError
from aurify.rewards.combine import combine_reward_table, combine_rewards
from aurify.types import Trajectory

TABLE = np.array([[1, 0.8, 1], [0.5, 0.6, 1], [0, 0.4, 0.5], [0, 0.2, 0]])


def standardised(values):
    return (values - values.mean()) / (values.std() + 1e-8)


def test_hand_derived_numbers():
    uniform = combine_reward_table(TABLE, "uniform")
    assert uniform == pytest.approx([0.9333, 0.7, 0.3, 0.0667], abs=1e-4)
    assert standardised(uniform) == pytest.approx([1.28405, 0.59264, -0.59264, -1.28405], abs=1e-5)
    assert combine_reward_table(TABLE, "std") == pytest.approx([0.95752, 0.71814, 0.28186, 0.04248], abs=1e-5)
    first = combine_reward_table(TABLE, "pca")
    assert first == pytest.approx([2.16908, 0.95159, -0.95159, -2.16908], abs=1e-5)
    assert standardised(first) == pytest.approx([1.29507, 0.56816, -0.56816, -1.29507], abs=1e-5)
    length = combine_reward_table(TABLE, "l2")
    assert length == pytest.approx([1.62481, 1.26886, 0.64031, 0.2], abs=1e-5)
    assert standardised(length) == pytest.approx([1.25468, 0.60866, -0.53210, -1.33123], abs=1e-5)


@pytest.mark.parametrize("how", ["sum", "uniform", "std", "pca", "l2"])
def test_who_is_better_at_everything_gets_no_less(how):
    generator = np.random.default_rng(0)
    for _ in range(300):
        table = generator.random((5, 3))
        if generator.random() < 0.5:
            table = table @ generator.random((3, 3))  # rewards that go together
        table[1] = table[0] + generator.random(3)
        values = combine_reward_table(table, how)
        assert values[1] >= values[0] - 1e-9


@pytest.mark.parametrize("how", ["uniform", "std", "pca", "l2"])
def test_a_group_without_spread_has_none_afterwards(how):
    values = combine_reward_table(np.full((4, 3), 0.5), how)
    assert np.all(values == values[0])


def test_opposed_rewards_fall_back_to_their_mean():
    table = np.array([[1.0, 0.0], [0.8, 0.3], [0.0, 1.0]])
    assert combine_reward_table(table, "pca") == pytest.approx(table.mean(1))


def answers(*rows):
    return [Trajectory([], [], 0, dict(row), sum(v for v in row.values() if v is not None)) for row in rows]


def test_weights_count_and_a_reward_that_does_not_apply_says_nothing():
    group = answers({"right": 1.0, "short": 0.5}, {"right": 0.0, "short": None}, {"right": 1.0, "short": 0.1})
    combine_rewards(group, {"right": 2.0}, "uniform")
    assert [t.reward for t in group] == pytest.approx([1.25, 0.15, 1.05])
    masked = Trajectory([], [], 0, {"right": None})
    combine_rewards([masked], {}, "std")
    assert masked.reward is None


def test_lengths_of_negative_rewards_are_refused():
    with pytest.raises(UserError, match=r"reward 'short' is negative"):
        combine_rewards(answers({"right": 1.0, "short": -0.5}), {}, "l2")


def test_a_reward_that_the_first_answer_lacks_is_not_dropped():
    """An environment's reward, missing in the first: .25, .75, .25 and not 0, 1, 0."""
    group = answers({"right": 0.0}, {"right": 1.0, "found": 0.5}, {"right": 0.0, "found": 0.5})
    for order in (group, group[::-1]):
        combine_rewards(order, {}, "uniform")
        assert [t.reward for t in group] == pytest.approx([0.25, 0.75, 0.25])


@pytest.mark.parametrize("how", ["uniform", "std", "pca", "l2"])
def test_a_reward_of_weight_zero_is_no_column(how):
    rows = ({"right": 1.0, "told": 9.0}, {"right": 0.0, "told": -3.0})
    with_it, without = answers(*rows), answers(*({"right": row["right"]} for row in rows))
    combine_rewards(with_it, {"told": 0.0}, how)
    combine_rewards(without, {}, how)
    assert [t.reward for t in with_it] == pytest.approx([t.reward for t in without])


def test_l2_names_the_reward_that_is_negative_wherever_it_stands():
    for order in (1, -1):
        rows = [{"right": 1.0, "short": -0.5}, {"right": 1.0}][::order]
        with pytest.raises(UserError, match=r"reward 'short' is negative"):
            combine_rewards(answers(*rows), {}, "l2")

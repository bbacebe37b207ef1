"""A KL penalty in the reward, by hand."""

from __future__ import annotations

import pytest

from aurify.algorithms.reinforce_pp import ReinforcePP
from aurify.algorithms.reward_kl import log_ratios
from aurify.algorithms.rloo import RLOO
from aurify.errors import UserError
from aurify.types import Datum


def answer(*log_ratios: float, **options) -> Datum:
    """A prompt of one token, and answer tokens with these log pi_old - log pi_ref."""
    old = [0.0, *(-1.0 for _ in log_ratios)]
    ref = [5.0, *(-1.0 - ratio for ratio in log_ratios)]  # the prompt's says nothing
    weights = [0.0, *(1.0 for _ in log_ratios)]
    return Datum([7] * len(old), weights, old_logprobs=old, ref_logprobs=ref, **{"source": "policy"} | options)


GROUP = [answer(0.2, 0.4), answer(-0.2)]


def test_rloo_compares_what_is_left_of_the_rewards():
    """r = (1, 0), less .5 * (.6, -.2): (.7, .1)"""
    [[first, second]] = RLOO(reward_kl_coef=0.5).penalised([[1.0, 0.0]], [GROUP])
    assert first.advantages == pytest.approx([0.6] * 3) and second.advantages == pytest.approx([-0.6] * 2)


def test_reinforce_pp_charges_a_token_for_itself_and_what_comes_after():
    """Returns 1 - .5 * (.6, .4) = .7 and .8, and 0 + .5 * .2 = .1; their mean .53333, their deviation
    sqrt((.027778 + .071111 + .187778) / 2) = .378594"""
    for groups, rewards in (([GROUP], [[1.0, 0.0]]), ([GROUP[:1], GROUP[1:]], [[1.0], [0.0]])):
        data = [datum for group in ReinforcePP(reward_kl_coef=0.5).penalised(rewards, groups) for datum in group]
        values = [*data[0].advantages[1:], *data[1].advantages[1:]]
        assert values == pytest.approx([0.440110, 0.704177, -1.144287], abs=1e-5)


def test_reinforce_pp_takes_the_groups_mean_off_before_the_costs():
    """r = (1, 0) -> (.5, -.5); returns .2, .3 and -.4: mean .03333, deviation .378594 as before. Alone, r = 1 -> 0"""
    algorithm = ReinforcePP(baseline=True, reward_kl_coef=0.5)
    [[first, second]] = algorithm.penalised([[1.0, 0.0]], [GROUP])
    assert [*first.advantages[1:], *second.advantages[1:]] == pytest.approx([0.440110, 0.704177, -1.144287], abs=1e-5)
    assert algorithm.compared([1.0]) == [0.0]


def test_what_a_guide_wrote_costs_nothing():
    assert log_ratios(answer(0.2, 0.4)) == pytest.approx([0, 0.2, 0.4])
    assert log_ratios(answer(0.2, 0.4, guided=[False, True, False])) == pytest.approx([0, 0, 0.4])
    assert log_ratios(answer(0.2, 0.4, source="guidance")) == [0, 0, 0]


def test_a_reference_is_asked_for_only_with_a_coefficient():
    assert {"old_logprobs", "ref_logprobs"} <= RLOO(reward_kl_coef=0.1).needs
    assert RLOO().needs == {"advantages"}
    with pytest.raises(UserError, match=r"reward_kl_coef: -1 is out of range; it must be at least 0 \(0.05 is usual"):
        RLOO(reward_kl_coef=-1)

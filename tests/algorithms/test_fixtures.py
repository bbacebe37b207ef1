"""Numbers derived by hand: the fixtures of the specification, with the arithmetic in the tests."""

from __future__ import annotations

import math

import pytest
import torch
from batches import make_batch

from aurify.algorithms.dpo import DPO
from aurify.algorithms.estimators import center_rewards, group_advantages
from aurify.algorithms.grpo import GRPO, kl_estimate
from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.sft import SFT
from aurify.types import Outputs


def test_group_advantages():
    """r = (1, 0, 0, 1): mean 1/2, unbiased deviation sqrt(4 * 1/4 / 3) = .57735; .5 / (.57735 + 1e-4) = .86588"""
    rewards = [1.0, 0.0, 0.0, 1.0]
    assert group_advantages([rewards], "group")[0] == pytest.approx([0.86588, -0.86588, -0.86588, 0.86588], abs=1e-5)
    assert group_advantages([rewards], "none")[0] == [0.5, -0.5, -0.5, 0.5]


def test_mixed_group_of_seven_failures_and_one_success():
    rewards = [0.0] * 7 + [1.0]
    assert center_rewards(rewards) == pytest.approx([-0.125] * 7 + [0.875])
    assert group_advantages([rewards], "group")[0] == pytest.approx([-0.3536] * 7 + [2.4749], abs=2e-3)


def test_batch_scaling_divides_every_group_by_the_same_number():
    first, second = group_advantages([[1.0, 0.0], [0.5, 0.0]], "batch")
    assert first[0] == pytest.approx(2 * second[0])
    # rewards 1, 0, .5, 0: mean .375, deviation sqrt((.390625 + 2 * .140625 + .015625) / 3) = .478714
    assert first[0] == pytest.approx(0.5 / (0.478714 + 1e-4), rel=1e-5)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [0.7], [None, None], [0.3, None], [None, 0.1, 0.1]])
def test_no_spread_means_exactly_no_advantage(scale, rewards):
    """T13. 0.1 three times has the floating-point mean 0.10000000000000002: the advantage must still be 0, not
    1e-13."""
    assert group_advantages([rewards, [1.0, 0.0]], scale)[0] == [0.0] * len(rewards)


def test_a_missing_reward_does_not_touch_the_baseline():
    assert center_rewards([1.0, None, 0.0]) == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.5, 1.0, -1.28), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8)],
)
def test_clipped_surrogate(ratio, advantage, loss):
    """Clip (.2, .28): an upside beyond 1.28 and a downside below .8 earn no more."""
    batch = make_batch([1], advantages=advantage, old_logprobs=0.0)
    out = Outputs(torch.tensor([math.log(ratio)]))
    assert float(GRPO(clip_low=0.2, clip_high=0.28).loss(out, batch)[0]) == pytest.approx(loss, rel=1e-5)


def test_dual_clip_bounds_negative_advantages():
    batch, out = make_batch([1], advantages=-1.0, old_logprobs=0.0), Outputs(torch.tensor([math.log(5.0)]))
    assert float(GRPO(dual_clip=3.0).loss(out, batch)[0]) == pytest.approx(3.0)
    assert float(GRPO().loss(out, batch)[0]) == pytest.approx(5.0)


def test_plain_surrogate_is_not_clipped():
    batch, out = make_batch([1], advantages=1.0, old_logprobs=0.0), Outputs(torch.tensor([math.log(5.0)]))
    assert float(GRPO(surrogate="plain").loss(out, batch)[0]) == pytest.approx(-5.0)


def test_clip_share_counts_by_the_sign_of_the_advantage():
    """T19. Sums; the engine divides by the tokens."""
    batch = make_batch([5], advantages=[1.0, 1.0, -1.0, -1.0, 1.0], old_logprobs=0.0)
    _, metrics = GRPO().loss(Outputs(torch.tensor([1.5, 0.5, 1.5, 0.5, 1.3]).log()), batch)
    assert (metrics["loss/clip_high"], metrics["loss/clip_low"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [("token", -(2 * 1.0 + 4 * 0.5)), ("sequence", -(1.0 + 0.5)), ("constant", -(2 * 1.0 + 4 * 0.5) / 10)],
)
def test_aggregators(aggregator, expected):
    """Two tokens with A = 1, four with A = .5, ratio 1: sums before the engine divides by 6 tokens or 2 sequences."""
    batch = make_batch([2, 4], advantages=[1.0] * 2 + [0.5] * 4)
    algorithm = GRPO(aggregator=aggregator, constant_length=10 if aggregator == "constant" else None)
    assert float(algorithm.loss(Outputs(torch.zeros(6)), batch)[0]) == pytest.approx(expected)


def test_kl_estimates():
    up, down = torch.tensor([0.5]), torch.tensor([-0.5])
    zero = torch.zeros(1)
    assert float(kl_estimate(up, zero, "k3")) == pytest.approx(0.106531, abs=1e-6)
    assert float(kl_estimate(down, zero, "k3")) == pytest.approx(0.148721, abs=1e-6)
    assert float(kl_estimate(up, zero, "k1")) == 0.5
    assert float(kl_estimate(up, zero, "k2")) == 0.125


def test_dpo():
    """h = (2, -1), beta .1: -log sigmoid(.3) = .554355; with smoothing .1 also .1 * (.854355 - .554355) = .584355"""
    batch, out = make_batch([1, 1], ref_logprobs=0.0), Outputs(torch.tensor([2.0, -1.0]))
    assert float(DPO(beta=0.1).loss(out, batch)[0]) == pytest.approx(0.554355, abs=1e-6)
    assert float(DPO(beta=0.1, label_smoothing=0.1).loss(out, batch)[0]) == pytest.approx(0.584355, abs=1e-6)


def test_reward_model():
    """Scores 1.5 and .2: -log sigmoid(1.3) = .241008; margin .5: .371101; centring .01 adds .01 * 1.7^2 = .0289"""
    out = Outputs(torch.zeros(0), scores=torch.tensor([1.5, 0.2]))
    assert float(RewardModel().loss(out, make_batch([0, 0]))[0]) == pytest.approx(0.241008, abs=1e-6)
    with_margin = make_batch([0, 0], margin=[0.5, 0.5])
    assert float(RewardModel().loss(out, with_margin)[0]) == pytest.approx(0.371101, abs=1e-6)
    centred = RewardModel(centering=0.01).loss(out, make_batch([0, 0]))[0]
    assert float(centred) == pytest.approx(0.241008 + 0.0289, abs=1e-6)


def test_reward_model_counts_a_tie_as_wrong():
    out = Outputs(torch.zeros(0), scores=torch.tensor([0.2, 0.2]))
    assert RewardModel().loss(out, make_batch([0, 0]))[1]["reward/accuracy"] == 0


def test_dynamic_fine_tuning():
    """p = .5 and .1: -.5 log .5 - .1 log .1 = .346574 + .230259; the gradient by log p is -p, where SFT's is -1"""
    logprobs = torch.tensor([0.5, 0.1]).log().requires_grad_(True)
    loss, metrics = SFT("dft").loss(Outputs(logprobs), make_batch([2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.576832, abs=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([-0.5, -0.1])
    assert metrics["loss/nll"] == pytest.approx(0.693147 + 2.302585)


def test_sft_weights_tokens():
    batch = make_batch([3], weights=[1.0, 0.5, 2.0])
    assert float(SFT().loss(Outputs(torch.tensor([-1.0, -2.0, -3.0])), batch)[0]) == 1 + 1 + 6

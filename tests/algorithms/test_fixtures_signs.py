"""Fixtures for what only TRL used to see, or nobody: detached ratios, signs, taus, weights, bounds, and which tokens a
term is about."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import make_batch

from aurify.algorithms.cispo import CISPO
from aurify.algorithms.correction import Correction
from aurify.algorithms.covariance import strip_covariance
from aurify.algorithms.distillation import Distillation
from aurify.algorithms.exgrpo import ExGRPO
from aurify.algorithms.gdpo import GDPO
from aurify.algorithms.grpo import GRPO, kl_estimate
from aurify.algorithms.gspo import GSPO
from aurify.algorithms.kto import KTO
from aurify.algorithms.luffy import LUFFY, shape_probability
from aurify.algorithms.reinforce_pp import ReinforcePP
from aurify.algorithms.sapo import SAPO
from aurify.errors import UserError
from aurify.types import Datum, Group, Outputs, Segment, Task, Trajectory


def slopes(algorithm: Any, values: list[float], lengths: list[int], sources: Any = (), **streams: Any) -> list[float]:
    """The gradient of the loss by each token's log-prob."""
    now = torch.tensor(values, requires_grad=True)
    algorithm.loss(Outputs(now), make_batch(lengths, sources, **streams))[0].backward()
    assert now.grad is not None
    return now.grad.tolist()


def loss_of(algorithm: Any, values: list[float], lengths: list[int], sources: Any = (), **streams: Any) -> float:
    return float(algorithm.loss(Outputs(torch.tensor(values)), make_batch(lengths, sources, **streams))[0])


def test_cispo_detaches_its_ratio():
    """rho = e^.5 = 1.648721 below the cap: the slope is -rho A, without the -rho A log pi of an attached one."""
    found = slopes(CISPO(max_ratio=5.0), [-0.5, -0.5], [2], advantages=[1.0, -2.0], old_logprobs=[-1.0, -1.0])
    assert found == pytest.approx([-1.648721, 3.297443], abs=1e-5)


@pytest.mark.parametrize(("gap", "slope"), [(0.5, 0.393469), (-0.5, -0.648721)])
def test_kl_sign_pulls_back_to_the_reference(gap, slope):
    """k3: 1 - e^-gap. Above the reference the log-prob falls, below it rises."""
    streams = {"advantages": [0.0], "ref_logprobs": [-1.0]}
    assert slopes(GRPO(kl_coef=0.2), [-1.0 + gap], [1], **streams) == pytest.approx([0.2 * slope], abs=1e-6)
    value = loss_of(GRPO(kl_coef=0.2), [-1.0 + gap], [1], **streams)
    assert value == pytest.approx(0.2 * (math.exp(-gap) + gap - 1), abs=1e-6)


def test_k1_and_k2_have_a_gradient_however_far_the_policy_is():
    for kind, slope in (("k1", 1.0), ("k2", 30.0)):
        now = torch.tensor([0.0], requires_grad=True)
        kl_estimate(now, torch.tensor([-30.0]), kind).backward()  # type: ignore[arg-type]
        assert now.grad is not None and now.grad.tolist() == [slope]


def test_kl_clamp_bounds_k3_of_a_token():
    """e^3 - 3 - 1 = 16.0855 is bounded to 10 and has no gradient; the other token is as ever."""
    streams = {"advantages": [0.0, 0.0], "ref_logprobs": [3.0, 0.5]}
    found = slopes(GRPO(kl_coef=1.0, kl_clamp=10.0), [0.0, 0.0], [2], **streams)
    assert found == pytest.approx([0.0, 1 - math.exp(0.5)], abs=1e-5)
    assert loss_of(GRPO(kl_coef=1.0), [0.0, 0.0], [2], **streams) == pytest.approx(16.0855 + 0.148721, abs=1e-4)


def test_k1_in_the_loss_is_worth_a_warning():
    assert "expected gradient of zero" in GRPO(kl_coef=0.1, kl="k1").cautions[0]
    assert not GRPO(kl_coef=0.1).cautions and not GRPO().cautions


def test_dual_clip_leaves_positive_advantages_alone():
    """rho 5, A 1, the upper clip out of the way: -5, and not -3."""
    streams = {"advantages": 1.0, "old_logprobs": 0.0}
    assert loss_of(GRPO(clip_high=9.0, dual_clip=3.0), [math.log(5.0)], [1], **streams) == pytest.approx(-5.0)
    assert loss_of(GRPO(dual_clip=3.0), [math.log(5.0)], [1], **streams) == pytest.approx(-1.2)


def test_sapo_has_a_tau_for_each_sign():
    """rho = 1.5: -(4 / 2) s(2 * .5) = -1.462117 for A = 1, (4 / 3) s(3 * .5) = 1.090099 for A = -1"""
    sapo, streams = SAPO(tau_positive=2.0, tau_negative=3.0), {"old_logprobs": 0.0}
    for advantage, expected in ((1.0, -1.462117), (-1.0, 1.090099)):
        assert loss_of(sapo, [math.log(1.5)], [1], advantages=advantage, **streams) == pytest.approx(expected, abs=1e-5)
    # slopes: rho times 4 s'(1) = .786448 and 4 s'(1.5) = .596584
    for advantage, expected in ((1.0, -1.179672), (-1.0, 0.894875)):
        found = slopes(sapo, [math.log(1.5)], [1], advantages=advantage, **streams)
        assert found == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize(("label", "expected"), [(1.0, 1.3 * 0.462570), (-1.0, 0.7 * 0.462570)])
def test_kto_weighs_by_its_label(label, expected):
    """h = 2 desirable and h = -1 undesirable, both .462570 with a divergence of .5; the weights differ."""
    algorithm = KTO(desirable_weight=1.3, undesirable_weight=0.7)
    h = 2.0 if label > 0 else -1.0
    found = loss_of(algorithm, [h], [1], label=torch.tensor([label]), baseline=torch.tensor([0.5]))
    assert found == pytest.approx(expected, abs=1e-6)


def test_gspo_token_form_moves_each_token_by_its_own_advantage():
    """s = e^.1 = 1.105171 without gradient: a slope of -s A / 3 for each of three tokens."""
    gspo = GSPO(form="token", clip_high=0.5)
    found = slopes(gspo, [0.1, -0.2, 0.4], [3], advantages=[1.0, 2.0, 3.0], old_logprobs=0.0)
    assert found == pytest.approx([-1.105171 / 3, -2.210342 / 3, -3.315513 / 3], abs=1e-5)


# ---------------------------------------------------------------------- corrections


def test_correction_weights_multiply_the_loss():
    """d = log pi_old - log pi_sampler = .5: e^.5 = 1.648721 times -A"""
    streams = {"advantages": 1.0, "logprobs": -1.5}
    assert loss_of(GRPO(correction=Correction("token_tis")), [-1.0], [1], **streams) == pytest.approx(-1.648721)
    assert loss_of(GRPO(), [-1.0], [1], **streams) == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", ["token_mis", "sequence_mis"])
def test_masked_importance_sampling_has_a_lower_bound(kind):
    """e^-1 = .367879 is below .5: out. e^-.5 = .606531 is within."""
    batch = make_batch([1, 1], logprobs=[0.0, 0.0])
    weight, metrics = Correction(kind).weigh(torch.tensor([-1.0, -0.5]), batch)
    assert weight.tolist() == pytest.approx([0.0, 0.606531], abs=1e-6)
    assert metrics["loss/sampler_rejected"].tolist() == [1.0, 0.0]


def test_the_geometric_mask_looks_at_the_mean():
    """d = -.4 twice: e^-.4 = .67 is within, the e^-.8 = .449 of the sum is not."""
    weight, _ = Correction("geometric_mask").weigh(torch.tensor([-0.4, -0.4]), make_batch([2], logprobs=[0.0, 0.0]))
    assert weight.tolist() == [1.0, 1.0]


def test_negative_drift_looks_at_the_policy_of_now():
    """The sampler and the trainer agreed; since then the policy has moved down by 8 nats a token."""
    batch = make_batch([2, 2], advantages=[-1.0, -1.0, 1.0, 1.0], logprobs=-1.0, old_logprobs=-1.0)
    out = Outputs(torch.tensor([-9.0] * 4, requires_grad=True))
    loss, metrics = GRPO(surrogate="plain", correction=Correction(negative_drift=0.5)).loss(out, batch)
    loss.backward()
    assert out.logprobs.grad is not None
    assert out.logprobs.grad.tolist() == pytest.approx([0.0, 0.0, -math.exp(-8), -math.exp(-8)])
    assert float(metrics["loss/sampler_rejected"]) == 2


def test_a_guides_token_pollutes_neither_correction_nor_sampler_gap():
    """The sequence has two own tokens with d = .6 and .4 and one of a guide, whose log-prob of 0 is no sampler's."""
    batch = make_batch([3], ["guidance", "policy", "policy"], logprobs=[0.0, -1.6, -1.4], advantages=1.0)
    old = torch.tensor([-7.0, -1.0, -1.0])
    weight, _ = Correction("geometric_mask", high=1.5).weigh(old, batch)
    assert weight.tolist() == [0.0] * 3, "e^.5 = 1.65 over its own two tokens; over all three it would be 1.4"
    for kind, expected in (
        ("token_tis", [1.0, math.exp(0.6), math.exp(0.4)]),
        ("sequence_tis", [2.0] * 3),  # e^1, cut at 2
        ("sequence_mis", [0.0] * 3),  # e^1 is above 2
        ("geometric_mask", [1.0] * 3),  # e^.5
    ):
        weight, metrics = Correction(kind).weigh(old, batch)  # type: ignore[arg-type]
        assert weight.tolist() == pytest.approx(expected), kind
        assert metrics["loss/sampler_gap"].tolist() == pytest.approx([0.0, 0.6, 0.4])
        assert metrics["loss/sampler_share"].tolist() == [0.0, 1.0, 1.0]


# ---------------------------------------------------------------------- guides and memories


def test_luffys_gamma_and_shape_bend_a_guides_tokens():
    """p = .25: gamma .5 gives .25 / .75 = 1/3 and a slope of .5 * .25 / .75^2 = .222222; no shape gives p itself"""
    streams = {"advantages": 1.0, "old_logprobs": 0.0, "logprobs": 0.0}
    for algorithm, value, slope in (
        (LUFFY(gamma=0.5), 1 / 3, 0.222222),
        (LUFFY(shape="none"), 0.25, 0.25),
        (LUFFY(shape="log"), math.log(0.25), 1.0),
    ):
        assert loss_of(algorithm, [math.log(0.25)], [1], ["guidance"], **streams) == pytest.approx(-value, abs=1e-6)
        assert slopes(algorithm, [math.log(0.25)], [1], ["guidance"], **streams) == pytest.approx([-slope], abs=1e-5)


def test_luffy_does_not_clip_unless_asked():
    streams = {"advantages": 1.0, "old_logprobs": -2.0}
    assert loss_of(LUFFY(), [-1.0], [1], **streams) == pytest.approx(-math.e)
    assert loss_of(LUFFY(clip_on_policy=True), [-1.0], [1], **streams) == pytest.approx(-1.2)


def test_replay_gamma_bends_replayed_tokens_alone():
    """w = e^-.5 = .606531: gamma .4 gives .606531 / 1.006531 = .602596 for replay; the guide keeps .1"""
    streams = {"advantages": 1.0, "old_logprobs": [-1.0, 0.0], "logprobs": [-1.0, 0.0]}
    found = loss_of(ExGRPO(replay_gamma=0.4), [-1.5, math.log(0.25)], [1, 1], ["replay", "guidance"], **streams)
    assert found == pytest.approx(-0.602596 - 0.714286, abs=1e-5)


def test_recorded_teacher_probabilities_take_the_place_of_certainty():
    """p = .25, the guide's own .5: x = .5 (a hair less), f = .5 / .6 = .833333. Without a record f = .714286."""
    streams = {"advantages": 1.0, "logprobs": [math.log(0.5), 0.0]}
    sources = ["guidance", "guidance"]
    found = loss_of(LUFFY(behaviour="recorded"), [math.log(0.25)] * 2, [1, 1], sources, **streams)
    assert found == pytest.approx(-0.833333 - 0.714286, abs=1e-5)
    assert loss_of(LUFFY(), [math.log(0.25)] * 2, [1, 1], sources, **streams) == pytest.approx(-2 * 0.714286, abs=1e-5)


@pytest.mark.parametrize(("shape", "slope"), [("log", 1.0), ("linear_log", 0.1), ("power", 0.1 * math.exp(-3))])
def test_shape_log_has_a_gradient_below_minus_twenty(shape, slope):
    log_x = torch.tensor(-30.0, requires_grad=True)
    shape_probability(log_x, shape, 0.1).backward()
    assert float(log_x.grad) == pytest.approx(slope, rel=1e-5)


def test_a_guides_token_has_the_ratio_one_in_luffy_and_its_own_elsewhere():
    """The trainer's log-prob before the update is known for GRPO: rho = e^.1. For LUFFY the entry is not looked at."""
    streams = {"advantages": [1.0, 1.0], "old_logprobs": [-2.1, 0.0]}
    guided = make_batch([1], ["guidance"], advantages=1.0, old_logprobs=-2.1)
    _, metrics = GRPO().loss(Outputs(torch.tensor([-2.0])), guided)
    assert float(metrics["loss/ratio"]) == pytest.approx(math.exp(0.1))
    _, metrics = LUFFY().loss(
        Outputs(torch.tensor([-2.0, -3.0])), make_batch([1, 1], ["policy", "guidance"], **streams)
    )
    assert float(metrics["loss/ratio"]) == pytest.approx(math.exp(0.1) + 1)


def test_the_entropy_bonus_has_its_coefficient():
    entropy = torch.tensor([1.0, 3.0], requires_grad=True)
    loss, _ = GRPO(entropy_coef=0.3).loss(Outputs(torch.tensor([-1.0] * 2), entropy), make_batch([2], advantages=0.0))
    loss.backward()
    assert entropy.grad is not None and entropy.grad.tolist() == pytest.approx([-0.3, -0.3])
    assert float(loss.detach()) == pytest.approx(-1.2)


def test_entropy_on_policy_tells_the_share_that_counts():
    entropy = torch.tensor([1.0, 3.0, 5.0])
    batch = make_batch([1, 1, 1], ["policy", "guidance", "replay"], advantages=0.0)
    algorithm = LUFFY(entropy_coef=0.5, entropy_on="policy")
    _, metrics = algorithm.loss(Outputs(torch.tensor([-1.0] * 3), entropy), batch)
    assert float(metrics["loss/entropy"]) == 1 and float(metrics["loss/entropy_share"]) == 1


def test_an_advantage_of_distillation_says_how_much_a_token_counts():
    """Divergences 2 and 3, the second token left out by `top_entropy`."""
    out = Outputs(torch.tensor([-1.0, -1.0]), divergence=lambda kind, beta: torch.tensor([2.0, 3.0]))
    loss, metrics = Distillation(aggregator="sequence").loss(out, make_batch([2], advantages=[1.0, 0.0]))
    assert float(loss) == 1.0 and float(metrics["loss/divergence"]) == 2.5


# ---------------------------------------------------------------------- advantages


def group_of(*rewards: dict[str, float | None], weights: dict[str, float] | None = None) -> Group:
    trajectories = []
    for row in rewards:
        valid = [value for value in row.values() if value is not None]
        segments = [Segment([5], "prompt"), Segment([6], "policy", [0.0])]
        trajectories.append(Trajectory(segments, [], 0, dict(row), sum(valid) if valid else None))
    return Group(Task("t", []), trajectories, weights or {})


def test_gdpo_normalises_over_the_step_in_the_end():
    """Two groups of z = +-.7071 and +-.7071: over the step their deviation is sqrt(4 * .5 / 3) = .816497, so
    .70701 / .81643 = .86598, whatever the rewards' sizes"""
    groups = [group_of({"r": 1.0}, {"r": 0.0}), group_of({"r": 0.5}, {"r": 0.1})]
    for row in GDPO().advantages(groups):
        assert row == pytest.approx([0.8659, -0.8659], abs=1e-3)
    two = [group_of({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}) for _ in range(2)]  # z = +-1.4142, the same in the end
    assert GDPO().advantages(two)[0] == pytest.approx([0.8659, -0.8659], abs=1e-3)


def test_gdpo_gives_groups_without_spread_exactly_nothing():
    """Also where rounding would leave .1 - .1 a hair beside 0, and beside a group that has a spread."""
    groups = [group_of({"r": 1.0}, {"r": 1.0}), group_of({"r": 1.0}, {"r": 0.0}, {"r": None})]
    assert GDPO().advantages(groups)[0] == [0.0, 0.0]
    assert GDPO().advantages([group_of({"r": 0.1}, {"r": 0.1}, {"r": 0.1})]) == [[0.0] * 3]
    rounded = group_of({"r": 0.6}, {"r": 0.6}, {"r": 0.0})  # its z add up to 2e-16
    assert GDPO().advantages([groups[0], rounded])[0] == [0.0, 0.0]


def test_gdpo_takes_none_for_no_reward_and_not_for_zero():
    """(1, 0, None): z = +-.7071, and the third one is not compared: 0. As a 0 it would be pushed down."""
    [row] = GDPO().advantages([group_of({"r": 1.0}, {"r": 0.0}, {"r": None})])
    assert row[2] == 0.0 and row[0] == pytest.approx(-row[1]) and row[0] == pytest.approx(0.7071, abs=1e-3)
    # b says nothing of the second: only a moves it, and among those with b the first is ahead
    [row] = GDPO().advantages([group_of({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": None}, {"a": 1.0, "b": 0.0})])
    assert row[1] == pytest.approx(0.0) and row[0] > 0 > row[2]


def test_gdpo_does_not_train_on_rewards_of_weight_zero():
    rows = ({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0})
    assert GDPO().advantages([group_of(*rows)]) == [[0.0, 0.0]]
    assert GDPO().advantages([group_of(*rows, weights={"b": 0.0})])[0] == pytest.approx([0.707, -0.707], abs=1e-3)
    assert GDPO().advantages([group_of(*rows, weights={"a": 0.0, "b": -1.0})])[0][0] > 0, "a weight below 0 turns it"
    assert GDPO(weights={"b": 3.0}).advantages([group_of(*rows, weights={"b": 0.0})])[0][1] > 0, "its own say is last"


def test_reinforce_pp_with_baseline_gives_a_group_without_spread_nothing():
    """Longer answers of the other group shift the mean over tokens; the flat group got -.35 from it."""
    spread, flat = group_of({"r": 1.0}, {"r": 0.0}), group_of({"r": 1.0}, {"r": 1.0})
    spread.trajectories[0].segments[1] = Segment([6] * 5, "policy", [0.0] * 5)
    first, second = ReinforcePP(baseline=True).advantages([spread, flat])
    assert second == [0.0, 0.0] and first[0] > 0 > first[1]
    assert all(ReinforcePP().advantages([spread, flat])[1]), "the plain form compares over the step"


# ---------------------------------------------------------------------- covariance


def answer(advantage: float, source: str = "policy", old: list[float] | None = None) -> Datum:
    return Datum([1, 2, 3], [0.0, 1.0, 1.0], advantages=[advantage] * 3, source=source, old_logprobs=old)  # type: ignore[arg-type]


def test_clip_cov_leaves_out_where_log_prob_and_advantage_go_together_most():
    """A = 1 with log-probs -.5 and -2.5, A = -1 with -3 and -2; means 0 and -2: covariances 1.5, -.5, 1 and 0. A
    guide's tokens are not asked."""
    data = [answer(1.0), answer(-1.0), answer(5.0, "guidance")]
    logprobs = [[0.0, -0.5, -2.5], [0.0, -3.0, -2.0], [0.0, 9.0, 9.0]]
    kept = strip_covariance(data, logprobs, 0.25)
    assert [datum.advantages for datum in kept] == [[1.0, 0.0, 1.0], [-1.0] * 3, [5.0] * 3]
    kept = strip_covariance(data, logprobs, 0.5)
    assert [datum.advantages for datum in kept] == [[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0], [5.0] * 3]


def test_kl_cov_has_the_gradient_of_a_penalty_on_the_change():
    """-rho A + .1 |log rho| by log pi: -rho A + .1 sign(log rho)"""
    old, now = [0.0, -1.0, -1.0], [0.0, -0.8, -1.3]
    [datum] = strip_covariance([answer(2.0, old=old)], [now], 0.9, 0.1)
    found = slopes(GRPO(surrogate="plain"), now[1:], [2], advantages=(datum.advantages or [])[1:], old_logprobs=old[1:])
    assert found == pytest.approx([-2 * math.exp(0.2) + 0.1, -2 * math.exp(-0.3) - 0.1], abs=1e-5)
    with pytest.raises(UserError, match="set surrogate: plain"):
        GRPO(covariance="kl")

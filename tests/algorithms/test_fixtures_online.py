"""Numbers derived by hand for the GRPO family."""

from __future__ import annotations

import math

import pytest
import torch
from batches import make_batch
from models import random_model

from aurify.algorithms.cispo import CISPO
from aurify.algorithms.correction import Correction
from aurify.algorithms.dapo import DAPO
from aurify.algorithms.distillation import Distillation
from aurify.algorithms.entropy import EntropyController, keep_top_entropy
from aurify.algorithms.estimators import leave_one_out, whiten_advantages
from aurify.algorithms.gdpo import GDPO
from aurify.algorithms.gmpo import GMPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.gspo import GSPO
from aurify.algorithms.reinforce_pp import ReinforcePP
from aurify.algorithms.sapo import SAPO
from aurify.algorithms.vespo import VESPO
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.types import Datum, Group, Outputs, Segment, Task, Trajectory


def group_of(*rewards: dict[str, float], lengths: tuple[int, ...] = ()) -> Group:
    """Trajectories with these rewards, each the sum of its parts."""
    lengths = lengths or (1,) * len(rewards)
    return Group(
        Task("t", []),
        [
            Trajectory([Segment([5], "prompt"), Segment([6] * n, "policy", [0.0] * n)], [], 0, dict(r), sum(r.values()))
            for r, n in zip(rewards, lengths, strict=True)
        ],
    )


def test_leave_one_out():
    """r = (1, 0, 0, 1): each against the mean of the other three, 1 - 1/3 and 0 - 2/3"""
    assert leave_one_out([1.0, 0.0, 0.0, 1.0]) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert leave_one_out([1.0, None, 0.0]) == [1.0, 0.0, -1.0]


def test_whitening_counts_tokens():
    """Reward 1 on three tokens, 0 on one: mean .75, deviation sqrt((3 * .0625 + .5625) / 3) = .5"""
    [[first], [second]] = whiten_advantages([[1.0], [0.0]], [[3], [1]])
    assert (first, second) == pytest.approx((0.25 / 0.5001, -0.75 / 0.5001))


def test_reinforce_pp_needs_no_group_and_its_baseline_takes_the_groups_mean():
    groups = [group_of({"r": 1.0}), group_of({"r": 0.0})]
    [[up], [down]] = ReinforcePP().advantages(groups)
    assert up == pytest.approx(-down) and up > 0
    assert ReinforcePP(baseline=True).advantages(groups) == [[0.0], [0.0]]


def test_overlong_penalty_comes_before_the_group_is_compared():
    """(20480, 4096): lengths 16384, 18432, 20480 -> 0, -.5, -1"""
    dapo = DAPO(max_length=20480, buffer=4096)
    assert [dapo.penalty(length) for length in (100, 16384, 18432, 20480, 99999)] == [0, 0, -0.5, -1, -1]
    short = DAPO(max_length=4, buffer=2, scale="none")
    # rewards 1 and 1, the second at the limit: 1 and 0, centred +-.5
    assert short.advantages([group_of({"r": 1.0}, {"r": 1.0}, lengths=(1, 4))]) == [[0.5, -0.5]]
    with pytest.raises(UserError, match="belong together"):
        DAPO(max_length=4)


def test_gdpo_gives_every_reward_the_same_say():
    """A reward in hundreds against one in ones that counts twice: a plain sum would follow the first."""
    group = group_of({"big": 100.0, "small": 0.0}, {"big": 0.0, "small": 1.0})
    assert GRPO().advantages([group])[0][0] > 0.5
    [first, second] = GDPO(weights={"small": 2.0}).advantages([group])[0]
    assert second > 0.5 and first == pytest.approx(-second)
    with pytest.raises(UserError, match="no reward 'smal'"):
        GDPO(weights={"smal": 1.0}).advantages([group])


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_gspo_ratio_of_the_sequence(form):
    """Log ratios (.1, -.2, .4): s = exp(.1) = 1.105171, the same for each token"""
    batch = make_batch([3], advantages=[1.0] * 3, old_logprobs=[0.0] * 3)
    out = Outputs(torch.tensor([0.1, -0.2, 0.4]))
    loss = GSPO(form=form, clip_high=0.5).loss(out, batch)[0]
    assert float(loss) == pytest.approx(-1.105171, abs=1e-5)
    assert float(GSPO(form=form).loss(out, batch)[0]) == pytest.approx(-1.0004, abs=1e-5)  # clipped at 1 + 4e-4


def test_gspo_spreads_the_gradient_evenly():
    logprobs = torch.tensor([0.1, -0.2, 0.4], requires_grad=True)
    batch = make_batch([3], advantages=[1.0] * 3, old_logprobs=[0.0] * 3)
    GSPO(clip_high=0.5).loss(Outputs(logprobs), batch)[0].backward()
    assert logprobs.grad.tolist() == pytest.approx([-1.105171 / 3] * 3, abs=1e-5)


def test_luspo_is_gspo_times_the_length():
    """The three tokens of the same sequence: -3 e^.1"""
    batch = make_batch([3], advantages=[1.0] * 3, old_logprobs=[0.0] * 3)
    luspo = GSPO(clip_high=0.5, aggregator="constant", constant_length=1)
    assert float(luspo.loss(Outputs(torch.tensor([0.1, -0.2, 0.4])), batch)[0]) == pytest.approx(-3.315513, abs=1e-5)


def test_gmpo_clips_tokens_and_takes_their_geometric_mean():
    """A = 1, log ratios (.1, -.2, .6 cut to .4): -exp(.3 / 3) = -1.105171, and the cut token has no gradient. A = -1,
    log ratios (.1, -.6 cut to -.4, .2): exp(-.1 / 3) = .967216"""
    batch = make_batch([3, 3], advantages=[1.0] * 3 + [-1.0] * 3, old_logprobs=[0.0] * 6)
    logprobs = torch.tensor([0.1, -0.2, 0.6, 0.1, -0.6, 0.2], requires_grad=True)
    loss, metrics = GMPO().loss(Outputs(logprobs), batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-1.105171 + 0.967216, abs=1e-5)
    up, down = -1.105171 / 3, 0.967216 / 3
    assert logprobs.grad.tolist() == pytest.approx([up, up, 0.0, down, 0.0, down], abs=1e-5)
    assert metrics["loss/clip_high"] == metrics["loss/clip_low"] == pytest.approx(1 / 3)


def test_vespo_weighs_whole_sequences():
    """w = e^.3 = 1.349859: w^2 e^(3 (1 - w)) = exp(.6 - 1.049576) = .637898 for A = 1, w^3 e^(2 (1 - w)) =
    exp(.9 - .699718) = 1.221748 for A = -1"""
    batch = make_batch([2, 2], advantages=[1.0, 1.0, -1.0, -1.0], old_logprobs=[-1.0] * 4)
    logprobs = torch.tensor([-0.9, -0.8, -0.9, -0.8], requires_grad=True)
    loss, metrics = VESPO().loss(Outputs(logprobs), batch)
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.637898] * 2 + [1.221748] * 2, abs=1e-5)
    assert float(loss.detach()) == pytest.approx(1.7 * (0.637898 - 1.221748), abs=1e-5)
    assert metrics["loss/sequence_weight"] == pytest.approx(2 * (0.637898 + 1.221748), abs=1e-5)


@pytest.mark.parametrize("gap", [15.0, -15.0])
def test_vespo_forgets_sequences_that_are_far_away(gap):
    """A product of ten ratios of e^15 is beyond float32: weight 0, and no NaN."""
    logprobs = torch.full((10,), gap, requires_grad=True)
    loss, _ = VESPO().loss(Outputs(logprobs), make_batch([10], advantages=1.0, old_logprobs=0.0))
    loss.backward()
    assert logprobs.grad.tolist() == [0.0] * 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: CISPO(max_ratio=5.0, clip_low=0.1),
        lambda: SAPO(dual_clip=3.0),
        lambda: VESPO(surrogate="plain"),
        lambda: GMPO(dual_clip=3.0),
    ],
)
def test_an_option_without_effect_is_an_error(make):
    with pytest.raises(UserError, match="no effect"):
        make()


def test_cispo_caps_the_weight_and_drops_no_token():
    logprobs = torch.tensor([math.log(8.0), 0.0], requires_grad=True)
    batch = make_batch([2], advantages=[1.0, 1.0], old_logprobs=[0.0, 0.0])
    CISPO(max_ratio=5.0).loss(Outputs(logprobs), batch)[0].backward()
    assert logprobs.grad.tolist() == pytest.approx([-5.0, -1.0])
    with pytest.raises(UserError, match="absolute cap"):
        CISPO()


def test_sapo_is_the_plain_gradient_at_ratio_one():
    logprobs = torch.zeros(2, requires_grad=True)
    batch = make_batch([1, 1], advantages=[2.0, -2.0], old_logprobs=[0.0, 0.0])
    SAPO().loss(Outputs(logprobs), batch)[0].backward()
    assert logprobs.grad.tolist() == pytest.approx([-2.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [1, 1, 1]),
        ("token_tis", [1.10517, 2, 0.60653]),
        ("sequence_tis", [1.82212] * 3),  # exp(.1 + 1 - .5)
        ("token_mis", [1.10517, 0, 0.60653]),  # e is above 2
        ("sequence_mis", [1.82212] * 3),
        ("geometric_mask", [1, 1, 1]),  # exp(.2) = 1.2214 is within bounds
    ],
)
def test_corrections(kind, expected):
    """d = (.1, 1, -.5), C = 2"""
    batch = make_batch([3], logprobs=[0.0] * 3)
    weight, metrics = Correction(kind).weigh(torch.tensor([0.1, 1.0, -0.5]), batch)
    assert weight.tolist() == pytest.approx(expected, abs=1e-5)
    assert float(metrics["loss/sampler_rejected"].sum()) == expected.count(0)


def test_geometric_mask_and_drift_leave_out_whole_sequences():
    batch = make_batch([2, 2], logprobs=[0.0] * 4, advantages=[-1.0, -1.0, 1.0, 1.0])
    old = torch.tensor([-1.0, -1.0, -0.3, -0.3])
    assert Correction("geometric_mask").weigh(old, batch)[0].tolist() == [0, 0, 1, 1]  # exp(-1) < .5 < exp(-.3)
    assert Correction(negative_drift=0.2).weigh(old, batch)[0].tolist() == [0, 0, 1, 1]  # the second has A > 0


def test_top_entropy_is_a_quantile_of_the_whole_step():
    data = [Datum([1, 2, 3], [0.0, 1.0, 1.0], advantages=[1.0] * 3) for _ in range(2)]
    kept = keep_top_entropy(data, [[0.0, 0.1, 0.2], [0.0, 3.0, 0.4]], 0.5)
    assert [datum.advantages for datum in kept] == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def test_entropies_of_the_engine_are_those_of_the_softmax():
    engine, plain = Engine(random_model()), random_model().module
    datum = Datum([5, 9, 11, 7], [0.0, 1.0, 0.0, 1.0])
    for temperature in (1.0, 0.3):
        logits = (plain(torch.tensor([datum.tokens])).logits[0].detach().double() / temperature).log_softmax(-1)
        expected = -(logits.exp() * logits).sum(-1)
        [found] = engine.entropies([datum], temperature=temperature)
        assert found == pytest.approx([0.0, float(expected[0]), 0.0, float(expected[2])], abs=1e-5)
        picked = [float(logits[0, 9]), float(logits[2, 7])]
        assert engine.logprobs([datum], temperature=temperature)[0][1::2] == pytest.approx(picked, abs=1e-5)


def test_entropy_controller_pushes_towards_its_target():
    controller = GRPO(entropy_target=0.2).make_controller()
    assert controller is not None and GRPO().make_controller() is None
    controller.observe({"loss/entropy": 0.1})
    controller.observe({"loss/entropy": 0.15})
    assert controller.apply(GRPO()).entropy_coef == pytest.approx(0.01)
    controller.observe({"loss/entropy": 0.5})  # above: the weight falls, and rests
    assert controller.coef == pytest.approx(0.005) and controller.apply(GRPO()).entropy_coef == 0
    again = EntropyController(0.2, 0.0)
    again.load_state_dict(controller.state_dict())
    assert again == controller


@pytest.mark.parametrize("divergence", ["reverse", "forward", "jsd"])
def test_distillation_rewards_give_the_gradient_of_the_divergence(divergence):
    """Summed over a small vocabulary instead of sampled: the expectation is exact."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_(True)
    beta = 0.3 if divergence == "jsd" else 0.5
    algorithm = Distillation(divergence=divergence, beta=beta, vocabulary="sampled", max_ratio=1e6)

    student = logits.log_softmax(0)
    p, q = student.exp(), teacher.exp()
    mixture = beta * q + (1 - beta) * p
    exact = {
        "reverse": (p * (student - teacher)).sum(),
        "forward": (q * (teacher - student)).sum(),
        "jsd": beta * (q * (teacher - mixture.log())).sum() + (1 - beta) * (p * (student - mixture.log())).sum(),
    }[divergence]
    [expected] = torch.autograd.grad(exact, logits, retain_graph=True)
    rewards = torch.tensor([algorithm.reward(float(gap)) for gap in (teacher - student).detach()])
    [found] = torch.autograd.grad(-(p.detach() * rewards * student).sum(), logits)
    assert torch.allclose(found, expected, atol=1e-9)


def test_distillation_makes_a_student_like_its_teacher():
    """On sampled tokens' log-probs alone, the divergence from the teacher falls."""
    teacher, student = Engine(random_model(seed=7), trainable=False), Engine(random_model(seed=1))
    generator, algorithm = torch.Generator().manual_seed(0), Distillation(vocabulary="sampled")
    prompt = [5, 9, 11]

    def distributions(engine: Engine) -> torch.Tensor:
        data = [Datum([*prompt, token], [0.0, 0.0, 0.0, 1.0]) for token in range(engine.vocabulary)]
        return torch.tensor([row[-1] for row in engine.logprobs(data)])

    def divergence() -> float:
        mine, other = distributions(student), distributions(teacher)
        return float((mine.exp() * (mine - other)).sum())

    before = divergence()
    for _ in range(15):
        tokens = torch.multinomial(distributions(student).exp(), 256, replacement=True, generator=generator).tolist()
        data = [Datum([*prompt, token], [0.0, 0.0, 0.0, 1.0]) for token in tokens]
        old, judged = student.logprobs(data), teacher.logprobs(data)
        data = [
            Datum(d.tokens, d.weights, advantages=[0.0] * 4, old_logprobs=o, ref_logprobs=t)
            for d, o, t in zip(data, old, judged, strict=True)
        ]
        student.forward_backward(algorithm.prepare(data, student, 1.0), algorithm)
        student.optim_step(3e-3)
    assert divergence() < 0.7 * before

"""LUFFY and ExGRPO: numbers derived by hand, and what a guide's and a replayed token must not do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from batches import make_batch
from models import random_model

from aurify.algorithms.exgrpo import ExGRPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.luffy import LUFFY, shape_probability
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.types import Datum, Group, Outputs, Segment, Task, Trajectory


@pytest.mark.parametrize(
    ("x", "slope"),
    [
        *((0.001, 0.0098), (0.01, 0.0826), (0.05, 0.2222), (0.1, 0.25), (0.2, 0.2222), (0.5, 0.1389)),
        *((1.0, 0.0826), (2.0, 0.0454), (5.0, 0.0192)),
    ],
)
def test_gradient_of_the_shaped_weight(x, slope):
    """f(x) = x / (x + .1), so x f'(x) = .1 x / (x + .1)^2: at .05 it is .005 / .0225 = .2222"""
    log_x = torch.tensor(math.log(x), requires_grad=True)
    shape_probability(log_x, "fraction", 0.1).backward()
    assert float(log_x.grad) == pytest.approx(slope, abs=5e-5)


def test_other_shapes():
    log_x = torch.tensor(math.log(0.25))
    assert float(shape_probability(log_x, "none", 0.1)) == pytest.approx(0.25)
    assert float(shape_probability(log_x, "power", 0.5)) == pytest.approx(0.5)
    assert float(shape_probability(log_x, "log", 0.1)) == pytest.approx(-1.386294)
    assert float(shape_probability(log_x, "linear_log", 0.1)) == pytest.approx(0.25 - 0.1386294)
    assert float(shape_probability(torch.tensor(-1e9), "fraction", 0.1)) < 1e-7, "no overflow, no NaN"


def test_each_token_has_the_loss_of_its_writer():
    """policy: rho = e^.1 = 1.10517 against -1.10517; guide: p = .25, f = .25 / .35 = .714286; replay: w = e^-.5 =
    .606531, f = .606531 / .706531 = .858463. A = 2, 1 and 1."""
    logprobs = torch.tensor([-1.0, math.log(0.25), -1.5], requires_grad=True)
    batch = make_batch(
        [1, 1, 1],
        ["policy", "guidance", "replay"],
        advantages=[2.0, 1.0, 1.0],
        old_logprobs=[-1.1, 0.0, -1.0],
        logprobs=[-1.1, 0.0, -1.0],
    )
    loss, metrics = ExGRPO().loss(Outputs(logprobs), batch)
    assert float(loss.detach()) == pytest.approx(-2 * 1.105171 - 0.714286 - 0.858463, abs=1e-5)
    loss.backward()
    # guide: p f'(p) = .1 * .25 / .35^2 = .204082; replay: .1 * .606531 / .706531^2 = .121504
    assert logprobs.grad.tolist() == pytest.approx([-2 * 1.105171, -0.204082, -0.121504], abs=1e-5)
    assert metrics["loss/guidance_share"] == metrics["loss/replay_share"] == 1
    assert metrics["loss/guidance_probability"] == pytest.approx(0.25)
    assert metrics["loss/guidance_nll"] == pytest.approx(1.386294)
    assert metrics["loss/replay_ratio"] == pytest.approx(0.606531)
    assert metrics["loss/sampler_gap"] == pytest.approx(0, abs=1e-6), "a guide has no log-probs to disagree with"


def test_clipping_touches_the_policys_own_tokens_alone():
    """rho = e^1 = 2.71828 for all three; clipped at 1.2 it has no gradient, and only one clipped token is counted."""
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    batch = make_batch(
        [1, 1, 1], ["policy", "guidance", "replay"], advantages=[1.0] * 3, old_logprobs=[-2.0, -2.0, -2.0]
    )
    loss, metrics = ExGRPO(clip_on_policy=True).loss(Outputs(logprobs), batch)
    loss.backward()
    assert logprobs.grad[0] == 0 and bool((logprobs.grad[1:] != 0).all())
    assert sum(value for name, value in metrics.items() if "clip" in name and "high" in name) == 1


def trajectory(reward: float | None, source: str = "policy") -> Trajectory:
    return Trajectory([Segment([1], "prompt")], [], 0, reward=reward, source=source)  # type: ignore[arg-type]


def group_of(*rewards: float | None, guide: float | None = 1.0) -> Group:
    return Group(Task("t", []), [*map(trajectory, rewards), trajectory(guide, "guidance")])


def test_advantages_are_taken_over_the_union():
    """Seven failures and a right trace: mean 1/8. With scaling: deviation .35355 (n - 1)."""
    group = group_of(*[0.0] * 7)
    assert LUFFY().advantages([group])[0] == pytest.approx([-0.125] * 7 + [0.875])
    assert LUFFY(scale="group").advantages([group])[0] == pytest.approx([-0.3536] * 7 + [2.4749], abs=2e-3)
    assert LUFFY().advantages([group_of(1.0, 1.0)])[0] == [0.0] * 3, "what the policy can do needs no guide"


def test_rl_and_sft_keeps_the_guide_out_of_the_statistics():
    assert LUFFY(sft_coef=1.0).advantages([group_of(0.0, 0.0, 1.0, 1.0), group_of(0.0, 0.0, guide=None)]) == [
        [-0.5, -0.5, 0.5, 0.5, 1.0],
        [0.0, 0.0, 0.0],
    ]


@pytest.mark.parametrize("options", [{}, {"aggregator": "sequence"}, {"aggregator": "constant", "constant_length": 7}])
def test_rl_and_sft_is_the_sum_of_two_means(options):
    """The gradient of the one call is that of GRPO on the policy's answers plus that of the guide's mean NLL."""
    own = [
        Datum([5, 6, 7, 8, 9], [0.0, 0.0, 1.0, 1.0, 1.0], advantages=[1.0] * 5, logprobs=[0.0] * 5, source="policy"),
        Datum([5, 6, 4, 3], [0.0, 0.0, 1.0, 1.0], advantages=[-1.0] * 4, logprobs=[0.0] * 4, source="policy"),
    ]
    guided = [Datum([5, 6, 20, 21], [0.0, 0.0, 1.0, 1.0], advantages=[1.0] * 4, logprobs=[0.0] * 4, source="guidance")]

    def gradient(*terms) -> torch.Tensor:
        engine = Engine(random_model())
        for data, algorithm in terms:
            prepare = getattr(algorithm, "prepare", lambda data, *_: data)
            engine.forward_backward(prepare(data, engine, 1.0), algorithm)
        return torch.cat([p.grad.flatten() for p in engine.trainable])

    together = gradient(([*own, *guided], LUFFY(sft_coef=0.5, **options)))
    rl, sft = gradient((own, GRPO(scale="none", surrogate="plain", **options))), gradient((guided, SFT()))
    expected = rl + 0.5 * sft
    assert float((together - expected).norm() / expected.norm()) < 1e-5


def test_kl_goes_together_with_a_guides_tokens():
    """T12: the reference crashes there."""
    engine = Engine(random_model())
    data = [
        Datum([5, 6, 7, 8], [0.0, 1.0, 1.0, 1.0], advantages=[a] * 4, logprobs=[0.0] * 4, source=source)
        for a, source in ((0.875, "guidance"), (-0.125, "policy"))
    ]
    reference = engine.logprobs(data, reference=True)
    data = [replace(d, ref_logprobs=[x - 0.1 for x in r]) for d, r in zip(data, reference, strict=True)]
    algorithm = LUFFY(kl_coef=0.1, kl="k3", entropy_coef=0.01)
    metrics = engine.forward_backward(data, algorithm)
    assert metrics["loss/kl"] == pytest.approx(math.exp(-0.1) + 0.1 - 1, rel=1e-3)
    assert engine.optim_step(1e-3)["optim/grad_norm"] > 0


def test_entropy_over_the_policys_own_tokens_only():
    entropy = torch.tensor([1.0, 1.0], requires_grad=True)
    for which, expected in (("all", [-0.5, -0.5]), ("policy", [-0.5, 0.0])):
        entropy.grad = None
        batch = make_batch([1, 1], ["policy", "guidance"], advantages=[0.0, 0.0])
        algorithm = LUFFY(entropy_coef=0.5, entropy_on=which)  # type: ignore[arg-type]
        algorithm.loss(Outputs(torch.tensor([-1.0, -1.0]), entropy), batch)[0].backward()
        assert entropy.grad.tolist() == expected


def test_layout_does_not_matter_with_all_three_sources():
    """T11 for groups in which some sequences are a guide's, one only in part, and one is replayed."""
    generator = torch.Generator().manual_seed(0)

    def ids(num: int) -> list[int]:
        return torch.randint(3, 250, (num,), generator=generator).tolist()

    data, prompt = [], ids(6)
    for k, source in enumerate(("policy", "policy", "guidance", "replay", "policy")):
        answer = ids(4 + 3 * k)
        tokens = prompt + answer
        guided = [6 <= t < 9 for t in range(len(tokens))] if k == 4 else None
        logprobs = [-5.0] * len(tokens)
        data.append(
            Datum(
                tokens,
                [0.0] * 6 + [1.0] * len(answer),
                advantages=[0.5 - 0.2 * k] * len(tokens),
                logprobs=logprobs,
                old_logprobs=logprobs,
                source=source,  # type: ignore[arg-type]
                guided=guided,
            )
        )

    def gradient(order: list[Datum], tokens: int, share: bool) -> torch.Tensor:
        engine = Engine(random_model(), micro_batch_tokens=tokens, share=share)
        engine.forward_backward(order, ExGRPO(aggregator="sequence"))
        return torch.cat([p.grad.flatten() for p in engine.trainable])

    expected = gradient(data, 10**6, False)
    for tokens, share in ((10**6, True), (1, True), (30, False)):
        found = gradient(data[::-1], tokens, share)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_bad_options():
    with pytest.raises(UserError, match="gamma"):
        LUFFY(gamma=0)
    with pytest.raises(UserError, match="replay_gamma"):
        ExGRPO(replay_gamma=0)

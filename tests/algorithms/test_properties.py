"""What must hold for every algorithm, whatever it computes. A new algorithm is found by its registered name; options
worth a test stand in variants.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from models import random_model
from variants import VARIANTS

from aurify import registry
from aurify.algorithms.dpo import DPO
from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig
from aurify.errors import UserError
from aurify.types import Datum, prepared


def every_algorithm() -> dict[str, Any]:
    """All that are registered, with their defaults where they have them, and the variants."""
    cases: dict[str, Any] = {}
    for name in registry.ENTRIES["algorithm"]:
        try:
            cases[name] = registry.get_entry("algorithm", name)()
        except (TypeError, UserError):  # an option must be given
            assert any(variant == name for variant, _ in VARIANTS), f"{name} needs a line in variants.py"
    for name, options in VARIANTS:
        label = ",".join(f"{key}={value}" for key, value in options.items())
        cases[f"{name}({label})"] = registry.get_entry("algorithm", name)(**options)
    return cases


CASES = every_algorithm()
ONLINE = [name for name, algorithm in CASES.items() if algorithm.learns_from == "rollouts"]
TAUGHT = [name for name in ONLINE if CASES[name].needs & {"teacher_logprobs", "teacher_divergence"}]
ADVANTAGE = [name for name in ONLINE if name not in TAUGHT]  # a teacher's come from elsewhere
OFFLINE = [name for name in CASES if name not in ONLINE]
CLIMBING = [name for name in OFFLINE if getattr(CASES[name], "loss_type", "") != "discopop"]  # which first sinks
LORA = LoraConfig(rank=4)


def bare(algorithm: Any) -> Any:
    """Without the terms that act whatever the advantage is."""
    fields = {field.name for field in dataclasses.fields(algorithm)}
    off = {"kl_coef": 0.0, "entropy_coef": 0.0, "kl": "k3"}
    return dataclasses.replace(algorithm, **{name: value for name, value in off.items() if name in fields})


def make_engine(algorithm, lora=None, **options) -> Engine:
    """An engine whose adapter, if any, is not in its initial state (B = 0 would hide half of the gradient)."""
    engine = Engine(random_model(scalar_head="scores" in algorithm.needs), lora=lora, **options)
    if engine.adapter is not None:
        generator = torch.Generator().manual_seed(1)
        for parameter in engine.adapter.parameters:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        engine.adapter.merge()
    if "teacher_divergence" in algorithm.needs:
        engine.follow(Engine(random_model(seed=7, hidden_size=32), trainable=False))
    return engine


def make_data(num_prompts: int = 5, completions: int = 4, advantage: float | None = None) -> list[Datum]:
    """Groups that share prompts; neighbours form units, so that the same data also serve as preference pairs."""
    generator = np.random.default_rng(0)
    data = []
    for _ in range(num_prompts):
        prompt = generator.integers(3, 300, int(generator.integers(5, 30))).tolist()
        for k in range(completions):
            completion = generator.integers(3, 300, int(generator.integers(2, 40))).tolist()
            total = len(prompt) + len(completion)
            value = float(generator.normal()) if advantage is None else advantage
            logprobs = [-5.7 + 0.2 * x for x in generator.normal(size=total).tolist()]
            data.append(
                Datum(
                    tokens=prompt + completion,
                    weights=[0.0] * len(prompt) + [1.0] * len(completion),
                    advantages=[value] * total,
                    old_logprobs=logprobs,
                    ref_logprobs=[x + 0.1 for x in logprobs],
                    unit=len(data) // 2,
                    logprobs=[x + 0.05 for x in logprobs],
                    margin=0.1 * (k // 2),
                    label=1.0 if k % 2 == 0 else -1.0,
                    source=("policy", "policy", "guidance", "replay")[k % 4],
                )
            )
    return data


def prepared_data(algorithm: Any, **options: Any) -> list[Datum]:
    """As the loops would hand them over: what depends on the whole step is settled by a model before its first
    update."""
    engine = make_engine(algorithm)
    engine.keep_reference()
    return prepared(algorithm, make_data(**options), engine)


def gradient(engine: Engine, data: list[Datum], algorithm) -> torch.Tensor:
    engine.forward_backward(data, algorithm)
    assert engine.optimizer is not None
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in engine.trainable]
    result = torch.cat([part.reshape(-1).clone() for part in parts])
    engine.optimizer.zero_grad()
    return result


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_does_not_depend_on_how_data_are_laid_out(name, lora):
    """T11, T21: micro-batch size, packing, tree sharing and order change nothing (fp32, relative 1e-5)."""
    algorithm = CASES[name]
    data = prepared_data(algorithm)
    plain = make_engine(algorithm, lora, micro_batch_tokens=10**6, share=False, packing=False)
    expected = gradient(plain, data, algorithm)
    assert float(expected.norm()) > 0
    units = [data[k : k + 2] for k in range(0, len(data), 2)]
    shuffled = [datum for k in np.random.default_rng(1).permutation(len(units)) for datum in units[k]]
    for tokens, share, order in ((10**6, True, data), (150, True, shuffled), (1, True, data), (150, False, shuffled)):
        engine = make_engine(algorithm, lora, micro_batch_tokens=tokens, share=share)
        assert relative(gradient(engine, order, algorithm), expected) < 1e-5, (tokens, share)


@pytest.mark.parametrize("name", ADVANTAGE)
def test_zero_advantage_gives_zero_gradient(name):
    algorithm = bare(CASES[name])
    engine = make_engine(algorithm)
    assert float(gradient(engine, prepared_data(algorithm, advantage=0.0), algorithm).abs().max()) == 0


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ADVANTAGE)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logprob_follows_the_advantage(name, lora, sign):
    """T10: after one step a completion with A > 0 is likelier, with A < 0 less likely, and every trainable part
    moved."""
    algorithm = bare(CASES[name])
    engine = make_engine(algorithm, lora)
    datum = dataclasses.replace(make_data(1, 1, advantage=sign)[0], unit=-1)
    before = sum(engine.logprobs([datum])[0])
    now = engine.logprobs([datum])[0]
    [datum] = prepared(algorithm, [dataclasses.replace(datum, old_logprobs=now, logprobs=now)], engine)
    old = [parameter.detach().clone() for parameter in engine.trainable]
    engine.forward_backward([datum], algorithm)
    engine.optim_step(1e-3)
    assert sign * (sum(engine.logprobs([datum])[0]) - before) > 0.01
    assert all(not torch.equal(a, b) for a, b in zip(old, engine.trainable, strict=True))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", CLIMBING)
def test_offline_methods_train(name, lora):
    """T10: twenty steps on a few pairs: a lower loss; likelier data, larger margins, better scores."""
    algorithm = CASES[name]
    engine = make_engine(algorithm, lora, optim=OptimConfig(lr=3e-3))
    engine.keep_reference()
    data = make_data(2, 2)
    if "ref_logprobs" in algorithm.needs:
        reference = engine.logprobs(data, reference=True)
        data = [dataclasses.replace(d, ref_logprobs=r) for d, r in zip(data, reference, strict=True)]
    history = []
    for _ in range(20):
        history.append(engine.forward_backward(prepared(algorithm, data, engine), algorithm))
        engine.optim_step(3e-3)
    told = "loss/nll" if "loss/nll" in history[0] else "loss"  # dft's loss rises on the way from 0 to 1 / e
    assert history[-1][told] < history[0][told]
    if algorithm.learns_from == "answers":
        assert history[-1][told] < history[0][told] - 0.1
    else:
        assert history[-1]["reward/accuracy"] == 1


def test_entropy_bonus_has_a_gradient():
    """T12: an entropy computed without gradient makes the bonus a no-op; here it alone must raise the entropy."""
    algorithm = GRPO(entropy_coef=1.0)
    engine = make_engine(algorithm)
    data = make_data(2, 2, advantage=0.0)
    before = engine.forward_backward(data, algorithm)["loss/entropy"]
    engine.optim_step(1e-3)
    assert engine.forward_backward(data, algorithm)["loss/entropy"] > before + 1e-4


def test_first_ratio_is_one():
    """T20: before the first update the trainer's log-probs are the old ones."""
    engine = make_engine(GRPO())
    data = [dataclasses.replace(d, old_logprobs=None) for d in make_data(2, 2)]
    for temperature in (1.0, 0.7):
        old = engine.logprobs(data, temperature=temperature)
        with_old = [dataclasses.replace(d, old_logprobs=o) for d, o in zip(data, old, strict=True)]
        ratio = engine.forward_backward(with_old, GRPO(), temperature=temperature)["loss/ratio"]
        assert ratio == pytest.approx(1, abs=1e-5)


def test_label_smoothing_changes_the_sigmoid_loss():
    """T15 (TRL ignores it)"""
    data = make_data(1, 2)
    losses = [
        make_engine(a).forward_backward(data, a)["loss"] for a in (DPO(beta=1.0), DPO(beta=1.0, label_smoothing=0.2))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3

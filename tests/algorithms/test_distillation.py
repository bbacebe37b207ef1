"""Distillation over the whole vocabulary: it trains, it refuses options that mean nothing to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import random_model

from aurify.algorithms.distillation import Distillation
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe
from aurify.types import Datum

KINDS = ["reverse", "forward", "jsd"]


def data_of(num: int, length: int) -> list[Datum]:
    tokens = torch.randint(3, 300, (num, 4 + length), generator=torch.Generator().manual_seed(0)).tolist()
    weights = [0.0] * 4 + [1.0] * length
    return [Datum(row, weights, advantages=[1.0] * len(row)) for row in tokens]


def pair(lora: LoraConfig | None) -> tuple[Engine, Engine]:
    """A teacher whose layers are the student's, stirred: an adapter can follow it."""
    student, teacher = random_model(seed=1), random_model(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in teacher.module.named_parameters():
            if ".layers." in name and weight.ndim == 2:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        for model in (student, teacher):
            model.module.lm_head.weight.mul_(10)
    return Engine(student, lora=lora), Engine(teacher, trainable=False)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_student_comes_near_its_teacher(kind, lora):
    """T10, at a temperature that is not 1: the divergence falls, log-probs come nearer, and all of it moves."""
    algorithm = Distillation(divergence=kind)
    student, teacher = pair(lora)
    student.follow(teacher)
    data = data_of(8, 20)
    before = [parameter.detach().clone() for parameter in student.trainable]
    kept = [parameter.detach().clone() for parameter in teacher.module.parameters()]

    def gap() -> float:
        far = torch.tensor(student.logprobs(data)) - torch.tensor(teacher.logprobs(data))
        return float(far.norm())

    first, losses = gap(), []
    for _ in range(30):
        losses.append(student.forward_backward(data, algorithm, temperature=0.7)["loss"])
        student.optim_step(5e-3)
    assert losses[-1] < 0.5 * losses[0] and gap() < 0.8 * first
    assert all(not torch.equal(a, b) for a, b in zip(before, student.trainable, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.module.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_tokens_estimate_the_gradient_of_the_whole_vocabulary(kind):
    """Many samples of one token: their mean gradient points where the exact one does, and is as long."""
    student, teacher = pair(None)
    student.follow(teacher)
    prompt = [5, 9, 11]
    every = [Datum([*prompt, token], [0.0, 0.0, 0.0, 1.0]) for token in range(student.vocabulary)]
    probabilities = torch.tensor([row[-1] for row in student.logprobs(every)]).exp()
    # each token once, weighed by its probability, is the expectation over samples
    data = [replace(one, weights=[0.0, 0.0, 0.0, float(p)]) for one, p in zip(every, probabilities, strict=True)]
    streams = zip(data, student.logprobs(data), teacher.logprobs(data), strict=True)
    data = [replace(one, advantages=[1.0] * 4, old_logprobs=old, ref_logprobs=ref) for one, old, ref in streams]
    grads = []
    for vocabulary in ("full", "sampled"):
        options: dict[str, Any] = {"max_ratio": 1e6} if vocabulary == "sampled" else {}
        algorithm = Distillation(divergence=kind, vocabulary=vocabulary, **options)  # type: ignore[arg-type]
        student.forward_backward(algorithm.prepare(data, student, 1.0), algorithm)
        assert student.optimizer is not None
        grads.append(torch.cat([p.grad.flatten() for p in student.trainable if p.grad is not None]))
        student.optimizer.zero_grad()
    exact, expected = grads
    assert float(exact.norm()) > 1e-2
    assert float((exact - expected).norm()) < 1e-4 * float(exact.norm())


@pytest.mark.parametrize("option", [{"max_ratio": 5.0}, {"surrogate": "clip"}, {"clip_high": 0.3}, {"dual_clip": 3.0}])
def test_options_of_the_estimate_are_refused_where_there_is_none(option):
    [name] = option
    with pytest.raises(UserError, match=rf"distillation\.{name}: .* vocabulary: sampled"):
        Distillation(**option)
    Distillation(vocabulary="sampled", **{"surrogate": "clip"} | option)


@pytest.mark.parametrize("source", [{"guidance": {"demonstrations": True}}, {"replay": {}}])
def test_the_estimate_is_for_what_the_student_wrote_just_now(source):
    stage = {"method": "distillation", "teacher": "random:tiny", **source}
    values: dict[str, Any] = {"model": "random:tiny", "task": {"name": "largest_number"}, "stages": {"distil": stage}}
    check_recipe(build_recipe(values))
    stage["algorithm"] = {"vocabulary": "sampled"}
    with pytest.raises(UserError, match="choose vocabulary: full"):
        check_recipe(build_recipe(values))

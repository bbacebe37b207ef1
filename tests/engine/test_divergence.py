"""The chunked divergence from a teacher equals the plain one in value and in every gradient; who may teach whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import random_model

from aurify.algorithms.distillation import Distillation
from aurify.engine.divergence import linear_divergence
from aurify.engine.engine import Engine
from aurify.engine.logprobs import Head
from aurify.errors import UserError
from aurify.models.model import tiny_model
from aurify.types import Datum

NUM, HIDDEN, TEACHER_HIDDEN, VOCABULARY = 23, 16, 24, 50


def logits_of(hidden, head: Head) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def plain(hidden, head, taught, teacher, temperature, kind, beta, size=VOCABULARY):
    """As the formulas are written."""
    p, q = ((logits_of(*pair)[:, :size] / temperature).softmax(-1) for pair in ((hidden, head), (taught, teacher)))
    m = beta * q + (1 - beta) * p

    def kl(a, b):
        return (a * (a / b).log()).sum(1)

    return {"forward": kl(q, p), "reverse": kl(p, q), "jsd": beta * kl(q, m) + (1 - beta) * kl(p, m)}[kind]


def random_head(hidden: int, size: int = VOCABULARY, *, bias: bool = False, **options: Any) -> Head:
    weight = (0.5 * torch.randn(size, hidden)).requires_grad_(True)
    return Head(weight, torch.randn(size, requires_grad=True) if bias else None, **options)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [7, NUM])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)])
@pytest.mark.parametrize("options", [{}, {"bias": True, "scale": 0.5}, {"bias": True, "scale": 1.5, "softcap": 3.0}])
def test_values_and_gradients(frozen, chunk, temperature, kind, beta, options):
    torch.manual_seed(0)
    hidden = torch.randn(NUM, HIDDEN, requires_grad=True)
    taught, up = torch.randn(NUM, TEACHER_HIDDEN, requires_grad=True), torch.randn(NUM)
    head, teacher = random_head(HIDDEN, **options), random_head(TEACHER_HIDDEN, **{**options, "scale": 0.8})
    leaves = [hidden, head.weight] + ([head.bias] if head.bias is not None else [])
    if frozen:
        for leaf in leaves[1:]:
            leaf.requires_grad_(False)
        leaves = [hidden]
    expected = plain(hidden, head, taught, teacher, temperature, kind, beta)
    found = linear_divergence(hidden, head, taught, teacher, temperature=temperature, kind=kind, beta=beta, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    wanted, grads = (torch.autograd.grad((d * up).sum(), leaves, retain_graph=True) for d in (expected, found))
    for a, b in zip(grads, wanted, strict=True):
        assert float((a - b).norm()) < 1e-5 * float(b.norm())
    assert torch.autograd.grad(found.sum(), [taught, teacher.weight], allow_unused=True) == (None, None)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize(("mine", "theirs"), [(VOCABULARY + 6, VOCABULARY), (VOCABULARY, VOCABULARY + 6)])
def test_heads_padded_to_different_lengths_meet_in_the_rows_of_both(kind, mine, theirs):
    torch.manual_seed(0)
    hidden, taught = torch.randn(NUM, HIDDEN), torch.randn(NUM, TEACHER_HIDDEN)
    head, teacher = random_head(HIDDEN, mine, bias=True), random_head(TEACHER_HIDDEN, theirs)
    expected = plain(hidden, head, taught, teacher, 1.0, kind, 0.5)
    found = linear_divergence(hidden, head, taught, teacher, kind=kind)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    wanted, grads = (torch.autograd.grad(d.sum(), [head.weight, head.bias]) for d in (expected, found))
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not a[VOCABULARY:].any()


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_certain_models_that_contradict_each_other(kind):
    """Probabilities that underflow give no nan, neither here nor in the gradient."""
    hidden = torch.eye(HIDDEN).mul_(300).requires_grad_(True)
    head, teacher = random_head(HIDDEN), random_head(HIDDEN)
    found = linear_divergence(hidden, head, hidden.detach(), teacher, kind=kind)
    found.sum().backward()
    assert found.isfinite().all() and hidden.grad is not None and hidden.grad.isfinite().all()
    assert (found > 0.5).any()


def test_no_divergence_from_oneself():
    hidden, head = torch.randn(NUM, HIDDEN), random_head(HIDDEN)
    for kind in ("forward", "reverse", "jsd"):
        assert float(linear_divergence(hidden, head, hidden, head, kind=kind).detach().abs().max()) < 1e-6


ALGORITHM = Distillation(divergence="forward")
DATA = [
    Datum([5, 9, 11, *answer], [0.0] * 3 + [1.0] * len(answer), advantages=[1.0] * (3 + len(answer)))
    for answer in ([4, 8], [4, 9, 200], [77])
]


def test_a_teacher_that_cannot_share_prompts(monkeypatch):
    """Then nobody shares, and the numbers stay."""
    losses = []
    for packing in (True, False):
        student, teacher = Engine(random_model()), Engine(random_model(seed=7), trainable=False, packing=packing)
        student.follow(teacher)
        told = student.forward_backward(DATA, ALGORITHM)
        assert (told["ledger/tokens_shared"] > 0) == packing
        losses.append(told["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 0.001


def test_who_may_teach():
    student, wide = Engine(tiny_model()), random_model(seed=7)  # a head of 300 rows for 259 tokens
    student.follow(Engine(wide, trainable=False))
    assert student.forward_backward(DATA, ALGORITHM)["loss"] > 0
    narrow = random_model(seed=7, vocab_size=200)
    with pytest.raises(UserError, match="has 200 rows"):
        student.follow(Engine(narrow, trainable=False))
    more = random_model(seed=7)
    more.tokenizer.add_tokens(["<think>"])
    student.follow(Engine(more, trainable=False))
    other = random_model(seed=7)
    other.tokenizer.add_tokens(["<think>"])
    student.tokenizer.add_tokens(["<tool>"])
    with pytest.raises(UserError, match="'<tool>' is 259 here and nothing there"):
        student.follow(Engine(other, trainable=False))


def test_rows_must_fit_into_the_teacher_too():
    student = Engine(random_model())
    with pytest.raises(ValueError, match="needs Engine"):
        student.forward_backward(DATA, ALGORITHM)
    student.follow(Engine(random_model(max_position_embeddings=5), trainable=False))
    with pytest.raises(UserError, match="has 6 tokens; the model's context is 5"):
        student.forward_backward(DATA, ALGORITHM)

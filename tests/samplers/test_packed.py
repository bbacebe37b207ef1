"""The packed head: the same logits, of the weights as they are now."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aurify.engine.logprobs import Head
from aurify.engine.optim import MasterAdamW, OptimConfig
from aurify.samplers.packed import PackedHead


def head_of(rows, features, bias=False, **options):
    torch.manual_seed(0)
    layer = nn.Linear(features, rows, bias=bias)
    return Head(layer.weight, layer.bias, **options)


pytestmark = pytest.mark.skipif(PackedHead.of(head_of(2, 2), 4) is None, reason="torch has no oneDNN here")


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"scale": 0.5, "softcap": 2.0}])
def test_logits_are_what_they_always_were(rows, options):
    head, hidden = head_of(80, 48, **options), torch.randn(rows, 48)
    packed = PackedHead(head, 4)
    with torch.inference_mode():
        torch.testing.assert_close(packed.logits(hidden), head.logits(hidden), rtol=1e-5, atol=1e-5)
    assert (packed.packed is None) == (rows == 1)


def test_a_changed_weight_is_packed_anew_and_an_unchanged_one_is_not():
    head, hidden = head_of(8, 16), torch.randn(2, 16)
    packed = PackedHead(head, 2)
    with torch.no_grad():
        for change in (1.0, 2.0, -3.0):
            head.weight.mul_(change)
            torch.testing.assert_close(packed.logits(hidden), head.logits(hidden), rtol=1e-5, atol=1e-5)
            blocks = packed.packed
            packed.logits(hidden)
            assert packed.packed is blocks
        head.weight.data = torch.ones(8, 16)  # torch does not count this
        packed.forget()
        torch.testing.assert_close(packed.logits(hidden), head.logits(hidden), rtol=1e-5, atol=1e-5)


def test_other_precisions_and_large_models_are_left_alone(monkeypatch):
    head = head_of(8, 16)
    assert PackedHead.of(Head(head.weight.detach().bfloat16()), 2) is None and PackedHead.of(None, 2) is None
    monkeypatch.setattr("aurify.cores.MEMORY_SHARE", 1e-12)
    assert PackedHead.of(head, 2) is None


def test_an_optimiser_step_changes_the_weight():
    head, hidden = head_of(512, 256, bias=True), torch.randn(8, 256)
    packed, optimizer = PackedHead(head, 8), MasterAdamW([head.weight, head.bias], OptimConfig())
    for _ in range(2):
        head.logits(hidden).square().sum().backward()
        optimizer.collect()
        optimizer.step(0.1)
        with torch.inference_mode():
            torch.testing.assert_close(packed.logits(hidden), head.logits(hidden), rtol=1e-4, atol=1e-4)

"""Packed weights: the same numbers, of the weights as they are now."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aurify.engine.optim import MasterAdamW, OptimConfig
from aurify.samplers.packed import PackedWeights, packed_weights

pytestmark = pytest.mark.skipif(packed_weights(nn.Linear(2, 2), 4) is None, reason="torch has no oneDNN here")


@pytest.mark.parametrize("rows", [2, 5, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_what_they_always_were(rows, bias):
    torch.manual_seed(0)
    layer, x, packed = nn.Linear(48, 80, bias=bias), torch.randn(rows, 3, 48), PackedWeights(4)
    with torch.inference_mode():
        for one in (x, x[:1, :1]):
            torch.testing.assert_close(packed.linear(one, layer.weight, layer.bias), layer(one), rtol=1e-5, atol=1e-5)
    assert len(packed.packed) == 1


def test_a_changed_weight_is_packed_anew():
    torch.manual_seed(0)
    weight, x, packed = torch.randn(8, 16), torch.randn(2, 16), PackedWeights(2)
    with torch.no_grad():
        for change in (1.0, 2.0, -3.0):
            weight.mul_(change)
            torch.testing.assert_close(packed.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert len(packed.packed) == 1


def test_other_precisions_and_large_models_are_left_alone(monkeypatch):
    assert packed_weights(nn.Linear(16, 8, dtype=torch.bfloat16), 2) is None
    monkeypatch.setattr("aurify.cores.MEMORY_SHARE", 1e-12)
    assert packed_weights(nn.Linear(16, 8), 2) is None


def test_an_optimiser_step_changes_weights():
    torch.manual_seed(0)
    layer, x, packed = nn.Linear(256, 512), torch.randn(8, 256), PackedWeights(8)
    optimizer = MasterAdamW(layer.parameters(), OptimConfig())
    for _ in range(2):
        layer(x).square().sum().backward()
        optimizer.collect()
        optimizer.step(0.1)
        with torch.inference_mode():
            found = packed.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-4)

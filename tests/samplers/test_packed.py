"""Packed products: the same numbers, of the weights as they are now."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aurify.samplers.packed import PackedProducts, packed_products

pytestmark = pytest.mark.skipif(packed_products(nn.Linear(2, 2), 4) is None, reason="torch has no oneDNN here")


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_what_it_always_gave(rows, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 80, bias=bias), torch.randn(rows, 3, 48)
    products = PackedProducts(4)
    with torch.inference_mode(), products:
        found = layer(x)
    with torch.inference_mode():
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    assert len(products.packed) == 1


def test_a_changed_weight_is_packed_anew():
    torch.manual_seed(0)
    weight, x, products = torch.randn(8, 16), torch.randn(2, 16), PackedProducts(2)
    with torch.no_grad():
        for change in (1.0, 2.0, -3.0):
            weight.mul_(change)
            with products:
                found = F.linear(x, weight)
            torch.testing.assert_close(found, x @ weight.t(), rtol=1e-5, atol=1e-5)
    assert len(products.packed) == 1


def test_other_precisions_and_large_models_are_left_alone(monkeypatch):
    layer = nn.Linear(16, 8)
    with torch.inference_mode(), PackedProducts(2) as products:
        nn.Linear(16, 8, dtype=torch.float64)(torch.randn(2, 16, dtype=torch.float64))
    assert not products.packed
    assert packed_products(nn.Linear(16, 8, dtype=torch.bfloat16), 2) is None
    monkeypatch.setattr("aurify.samplers.packed.MEMORY_SHARE", 1e-12)
    assert packed_products(layer, 2) is None

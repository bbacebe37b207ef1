"""LoRA on a bf16 base: small updates are not rounded away, as they are where the adapter's product is added to a base
product that is rounded already (`benchmarks/lora_bf16.py` shows what that does to a real model)."""

from __future__ import annotations

import peft
import pytest
import torch

from aurify.engine.lora import AdapterState, LoraLinear

RANK, ALPHA, IN, OUT = 8, 16, 256, 512


def layers(bias: bool) -> tuple[LoraLinear, torch.nn.Module]:
    """Ours and peft's, on the same base with the same small adapter."""
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(IN, OUT, bias=bias).bfloat16().requires_grad_(False)
    torch.nn.init.normal_(base.weight, std=IN**-0.5, generator=generator)
    if bias:
        torch.nn.init.normal_(base.bias, std=10, generator=generator)
    ours = LoraLinear(base, AdapterState(), rank=RANK, scale=ALPHA / RANK, generator=generator)
    torch.nn.init.normal_(ours.lora_B, std=1e-4, generator=generator)
    ours.merge()
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    theirs = peft.get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
    theirs.lora_A["default"].weight.data.copy_(ours.lora_A)
    theirs.lora_B["default"].weight.data.copy_(ours.lora_B)
    assert theirs.lora_A["default"].weight.dtype == torch.float32
    return ours, theirs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [1, 256])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_update_below_half_a_step_of_bf16_moves_the_outputs_it_should(rows, grad, bias):
    """Summed over many outputs it is what it is in exact arithmetic. A large bias, as in Qwen2's queries and keys,
    changes nothing about that."""
    ours, theirs = layers(bias)
    x = torch.randn(256, IN, generator=torch.Generator().manual_seed(1)).bfloat16()

    def outputs(layer: torch.nn.Module) -> torch.Tensor:
        return torch.cat([layer(part) for part in x.split(rows)]).double()

    with torch.set_grad_enabled(grad):
        ours.state.use = "reference"
        before = outputs(ours)
        ours.state.use = "adapter"
        moved, peft_moved = outputs(ours) - before, outputs(theirs) - before
    with torch.no_grad():
        exact = (x.double() @ ours.lora_A.double().t() @ ours.lora_B.double().t()) * ours.scale
        small = exact.abs() < before.abs() / 512
    assert float(small.double().mean()) > 0.8, "most are below half a step of bf16"

    def recovered(found: torch.Tensor) -> float:
        return float((found * exact).sum() / exact.square().sum())

    assert recovered(moved) == pytest.approx(1, abs=0.1)
    assert recovered(peft_moved) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fresh_adapter_is_its_reference_bit_for_bit(dtype, bias):
    ours, _ = layers(bias)
    ours.base.to(dtype)
    torch.nn.init.zeros_(ours.lora_B)
    ours.merged = ours.rounded = None
    ours.merge()
    x = torch.randn(33, IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for use in ("adapter", "reference"):
        for grad in (False, True):
            ours.state.use = use
            with torch.set_grad_enabled(grad):
                found.append(ours(x).detach())
    assert all(torch.equal(found[0], other) for other in found[1:])

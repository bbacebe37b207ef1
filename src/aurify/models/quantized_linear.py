"""Base weights in 4 or 8 bits (QLoRA, arXiv 2305.14314), in the formats of bitsandbytes.

transformers reads the files, and bitsandbytes quantises each tensor as it comes, so the whole model is never in memory.
Then a layer of our own takes the codes over. That of bitsandbytes computes one thing with gradients and another
without: on a CPU with bf16 it repacks its weight, in 8 bits it rounds its inputs too. Sampler, reference and trainer
would be different policies."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from aurify.files import require


def import_bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses a kernel that we never use
    return require("bitsandbytes", "quantize", "for weights or optimiser states in 4 or 8 bits")


class QuantizedProduct(torch.autograd.Function):
    """rows [n, in] times the layer's weight, plus `added` [n, out], rounded once. It keeps nothing: backward makes the
    weight again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, added: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        weight = layer.weight.t()
        return rows @ weight if added is None else torch.addmm(added, rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_rows, needs_added, _ = ctx.needs_input_grad
        return grad @ ctx.layer.weight if needs_rows else None, grad if needs_added else None, None


class QuantizedLinear(nn.Linear):
    """A frozen layer that keeps codes and scales, and makes its weight for each product."""

    codes: Tensor
    scales: Tensor
    scale_scales: Tensor | None  # double quantisation: the scales are codes too
    scale_code: Tensor | None
    scale_offset: Tensor | None

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        """layer: of bitsandbytes, quantised. dtype: of the weight that is made."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        self.register_parameter("bias", layer.bias)
        self.was_linear = layer.source_cls is nn.Linear  # or a Conv1D, whose weight was transposed
        state = getattr(layer.weight, "quant_state", None)
        outer = None if state is None else state.state2
        self.kind = "int8" if state is None else state.quant_type
        self.block: int = 0 if state is None else state.blocksize
        self.scale_block: int = outer.blocksize if outer else 0
        self.register_buffer("codes", layer.weight.data)
        self.register_buffer("scales", layer.weight.SCB if state is None else state.absmax)
        self.register_buffer("scale_scales", outer.absmax if outer else None)
        self.register_buffer("scale_code", outer.code if outer else None)
        self.register_buffer("scale_offset", state.offset if state is not None and outer else None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], made anew"""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        if self.kind == "int8":
            return (self.codes * (self.scales / 127)[:, None]).to(self.dtype)
        outer = None
        if self.scale_offset is not None:
            outer = QuantState(self.scale_scales, code=self.scale_code, blocksize=self.scale_block, dtype=torch.float32)
        state = QuantState(
            self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=self.block,
            quant_type=self.kind,
            dtype=self.dtype,
            offset=self.scale_offset,
            state2=outer,
        )
        return dequantize_4bit(self.codes, state)

    def forward(self, x: Tensor) -> Tensor:
        output = QuantizedProduct.apply(x.reshape(-1, self.in_features), None, self).view(*x.shape[:-1], -1)
        return output if self.bias is None else output + self.bias

    def to_plain(self) -> nn.Module:
        """The layer that it was before it was quantised, with the rounded weight."""
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            size = self.in_features, self.out_features
            plain: Any = nn.Linear(*size, bias=self.bias is not None) if self.was_linear else Conv1D(*size[::-1])
        weight = self.weight if self.was_linear else self.weight.t().contiguous()
        plain.weight, plain.bias = nn.Parameter(weight), self.bias
        return plain


def adopt_layers(module: Any, dtype: torch.dtype) -> None:
    """Puts our layers in the place of those of bitsandbytes. Nothing is copied."""
    kinds = import_bitsandbytes().nn
    for name, layer in list(module.named_modules()):
        if isinstance(layer, (kinds.Linear4bit, kinds.Linear8bitLt)):
            module.set_submodule(name, QuantizedLinear(layer, dtype))
    module.hf_quantizer.remove_quantization_config(module)  # else transformers lets nobody move or resize it


@torch.no_grad()
def dequantize_layers(module: nn.Module) -> None:
    """Leaves plain layers with the rounded weights."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            module.set_submodule(name, layer.to_plain())


def count_bytes(module: nn.Module) -> int:
    """Of all weights, quantised or not; shared ones count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))

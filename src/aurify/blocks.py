"""Weights in the blocks of oneDNN, laid out beforehand for products of few rows on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from aurify.cores import affordable

if TYPE_CHECKING:
    from torch import Tensor


def blocks_pay(weights: Sequence[Tensor]) -> bool:
    """Not on a GPU, in another precision, without oneDNN, or for a model too large to be in memory twice."""
    import torch

    plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    works = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return plain and works and affordable(sum(weight.numel() * weight.element_size() for weight in weights))


def blocks_of(weight: Tensor, rows: int) -> Tensor:
    """weight [out, in]; rows: what the blocks are laid out for; any number works."""
    import torch

    return cast("Tensor", torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows))


def blocked_linear(x: Tensor, blocks: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """As torch.nn.functional.linear, without gradients. activation: "none" or "gelu"."""
    import torch

    return cast("Tensor", torch.ops.mkldnn._linear_pointwise(x, blocks, bias, activation, [], "none"))

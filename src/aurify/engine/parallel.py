"""What a step needs from other ranks: sums, and for a quantile the numbers themselves. Only these functions know the
world size; data-parallel training needs no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank_device() -> torch.device:
    """Where tensors for other ranks must be: NCCL moves only those on this rank's own card."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())  # as `hardware.choose_device` has set it
    return torch.device("cpu")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Every rank calls it with as many numbers, and gets their sums over ranks."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=rank_device())
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def gather_over_ranks(values: Sequence[float]) -> list[float]:
    """The numbers of all ranks, in the same order on each. Every rank must call it, even with no numbers."""
    if world_size() == 1:
        return list(values)
    parts: list[list[float]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def sum_grads_over_ranks(parameters: Sequence[Tensor]) -> None:
    """Adds up gradients over ranks in one flat buffer; a rank whose data did not reach a parameter contributes
    zeros."""
    if world_size() == 1 or not parameters:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)

"""Brings what belongs to one row to the device of the model in a single transfer.

A row needs some twenty short vectors. On a GPU each would be a copy of its own, which the driver has to stage first and
the host has to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: every vector begins where any kernel can read it


def upload_arrays(arrays: Sequence[np.ndarray[Any, Any]], device: torch.device) -> list[Tensor]:
    """Tensors with the values of `arrays`. On a CPU they share the memory of the arrays."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return upload_arrays_together(arrays, device)


def upload_arrays_together(arrays: Sequence[np.ndarray[Any, Any]], device: torch.device) -> list[Tensor]:
    """Copies all bytes into one pinned buffer, sends it without waiting, and splits it on the device."""
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    starts = list(accumulate(sizes, initial=0))
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    memory = buffer.numpy()
    for array, start in zip(arrays, starts, strict=False):
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = buffer.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]

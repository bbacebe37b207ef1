"""Products with weights that were laid out for them beforehand.

A matrix product copies its weight into blocks that fit the caches, each time it is called. For the hundreds of rows
of a training step that is nothing; for the few rows of a decoding step it costs as much as the product itself. While
weights stay the same, the sampler keeps them in oneDNN's blocks: for a second copy of the weights, products of 64 rows
take a sixth less time and those of 2 to 8 rows a third to a half."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress

import torch.nn.functional as F
from torch import Tensor, nn

from aurify.blocks import blocked_linear, blocks_of, blocks_pay


class PackedWeights:
    """A weight is packed when it is first met, and again when it has changed, as far as torch counts changes: through
    `.data` it does not, and then somebody must say `forget`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows  # what the blocks are laid out for; any number works
        self.packed: dict[int, tuple[Tensor, int, Tensor]] = {}  # the weight keeps its id, its version tells a change
        self.packing = threading.Lock()  # cores that decode side by side pack each weight once

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As torch.nn.functional.linear, without gradients."""
        if x.numel() == x.shape[-1]:  # one row reads each weight once: there is nothing to gain
            return F.linear(x, weight, bias)
        return blocked_linear(x, self.blocks(weight), bias)

    def forget(self) -> None:
        self.packed.clear()

    def close(self) -> None:
        """Forgets all and gives the memory back to the system. glibc would keep it for the thread that packed, and the
        next sampler's thread would take as much again."""
        self.forget()
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)

    def blocks(self, weight: Tensor) -> Tensor:
        with self.packing:
            known = self.packed.get(id(weight))
            if known is None or known[1] != weight._version:
                known = weight, weight._version, blocks_of(weight, self.rows)
                self.packed[id(weight)] = known
            return known[2]


def packed_weights(module: nn.Module, rows: int) -> PackedWeights | None:
    """None where it would not pay."""
    return PackedWeights(rows) if blocks_pay(list(module.parameters())) else None

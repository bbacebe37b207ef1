"""The head's product, with its weight laid out beforehand.

A matrix product copies its weight into blocks that fit the caches, each time it is called. For the many rows of a
training step that is nothing; for the few rows of a decoding step and the largest weight of a small model it costs
half as much as the product itself. While weights stay the same, the sampler keeps the head in oneDNN's blocks."""

from __future__ import annotations

import threading

import torch.nn.functional as F
from torch import Tensor

from aurify.blocks import blocked_linear, blocks_of, blocks_pay
from aurify.engine.logprobs import Head


class PackedHead:
    """Packed when it is first asked, and again when the weight has changed, as far as torch counts changes: through
    `.data` it does not, and then somebody must say `forget`."""

    def __init__(self, head: Head, rows: int) -> None:
        self.head, self.rows = head, rows  # what the blocks are laid out for; any number works
        self.packed: tuple[int, Tensor] | None = None  # of which version of the weight
        self.packing = threading.Lock()  # cores that decode side by side pack it once

    @staticmethod
    def of(head: Head | None, rows: int) -> PackedHead | None:
        """None where it would not pay."""
        return PackedHead(head, rows) if head is not None and blocks_pay([head.weight]) else None

    def logits(self, hidden: Tensor) -> Tensor:
        """As `Head.logits`, without gradients."""
        return self.head.logits(hidden, self.linear if len(hidden) > 1 else F.linear)  # one row reads a weight once

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return blocked_linear(x, self.blocks(weight), bias)

    def forget(self) -> None:
        self.packed = None

    def blocks(self, weight: Tensor) -> Tensor:
        with self.packing:
            if self.packed is None or self.packed[0] != weight._version:
                self.packed = weight._version, blocks_of(weight, self.rows)
            return self.packed[1]

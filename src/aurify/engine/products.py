"""Who multiplies by a model's weights: torch, or, in a sampler's thread, what it brings along. Merged adapters and
heads ask here, and so do the plain layers of a model that `hand_over` was called for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, weight, bias), as torch.nn.functional.linear


class Products(threading.local):
    linear: Linear = staticmethod(F.linear)


products = Products()


@contextmanager
def multiplied_by(linear: Linear) -> Iterator[None]:
    """In this thread alone: another one may train the same model meanwhile."""
    previous, products.linear = products.linear, linear
    try:
        yield
    finally:
        products.linear = previous


class HandedOver(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return products.linear(x, self.weight, self.bias)


def hand_over(decoder: nn.Module) -> None:
    """Lets the plain linear layers of a model ask `products`. They keep their weights and stay nn.Linear."""
    for layer in decoder.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = HandedOver

"""Copies of a model that hold the same weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection
from typing import Any

from torch import Tensor


def share_weights(module: Any, own: Collection[Tensor] = ()) -> Any:
    """A copy of the modules that holds the same tensors, except for those in `own`, which it has copies of. Its
    configuration is its own."""
    apart = {id(tensor) for tensor in own}
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in apart}
    for part in module.modules():
        for held in vars(part).values():  # of an adapter: what was made of its weights, and which one a thread uses
            for value in held if isinstance(held, tuple) else (held,):
                if isinstance(value, Tensor | threading.local):
                    memo[id(value)] = value
    return copy.deepcopy(module, memo)

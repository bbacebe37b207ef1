"""The weights of an engine, for samplers and exports, and copies of a model that hold the same ones."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from aurify.engine.adapter import Adapter
from aurify.models.quantized_linear import QuantizedLinear


class Weights:
    """Yields (name, tensor) for each weight, under the names of the model without adapter. An adapted weight that has
    no merged copy is merged when its turn comes, and a quantised one is made."""

    def __init__(self, module: Any, adapter: Adapter | None) -> None:
        self.module, self.adapter = module, adapter

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        layers = self.adapter.layers if self.adapter is not None else {}
        adapted = {f"{name}.base.weight": (f"{name}.weight", layer) for name, layer in layers.items()}
        for name, parameter in self.module.named_parameters():
            if name in adapted:
                plain, layer = adapted[name]
                yield plain, layer.plain_weight()
            elif not name.rpartition(".")[2].startswith("lora_"):
                yield name.replace(".base.bias", ".bias"), parameter.detach()
        for name, part in self.module.named_modules():
            if isinstance(part, QuantizedLinear):
                plain = name.removesuffix(".base")
                yield f"{plain}.weight", layers[plain].plain_weight() if plain in layers else part.weight


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

"""The weights of an engine, for samplers and exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from aurify.engine.adapter import Adapter


class Weights:
    """Yields (name, tensor) for each weight, under the names of the model without adapter. An adapted weight that has
    no merged copy is merged when its turn comes."""

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

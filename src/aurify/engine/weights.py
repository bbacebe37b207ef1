"""The weights of an engine, for samplers and exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from aurify.engine.lora import Adapter


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
                merged = layer.merged
                yield plain, layer.merged_weight(layer.lora_A, layer.lora_B).detach() if merged is None else merged
            elif not name.endswith((".lora_A", ".lora_B")):
                yield name.replace(".base.bias", ".bias"), parameter.detach()

"""The weights of an engine, for samplers and exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from aurify.engine.engine import Engine


class Weights:
    """What to sample from: (name, tensor) for each weight, under the names of the model without adapter. An adapted
    weight without a merged copy is merged while it passes by."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        layers = self.engine.adapter.layers if self.engine.adapter is not None else {}
        replaced = {f"{name}.base.weight": (f"{name}.weight", layer) for name, layer in layers.items()}
        for name, parameter in self.engine.module.named_parameters():
            if name in replaced:
                plain, layer = replaced[name]
                merged = layer.merged
                yield plain, layer.merged_weight(layer.lora_A, layer.lora_B).detach() if merged is None else merged
            elif not name.endswith((".lora_A", ".lora_B")):
                yield name.replace(".base.bias", ".bias"), parameter.detach()

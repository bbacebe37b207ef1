"""The weights of an engine, for samplers and exports, and copies of a model that hold the same ones."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aurify.engine.adapter import Adapter
from aurify.errors import UserError
from aurify.models.quantized_linear import QuantizedLinear

SHARD = 512 * 2**20  # bytes of a file of weights


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


def base_weights(module: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights below the adapter, under the names that they have without it."""
    for name, held in list_base_entries(module):
        yield name, held.weight if isinstance(held, QuantizedLinear) else held


def list_base_entries(module: Any) -> Iterator[tuple[str, Tensor | QuantizedLinear]]:
    """The same; a quantised weight is not made, only its layer is told."""
    for name, parameter in module.named_parameters():
        layer, _, part = name.rpartition(".base.")
        adapted = layer and hasattr(module.get_submodule(layer), "lora_A")
        if not name.rpartition(".")[2].startswith("lora_"):
            yield f"{layer}.{part}" if adapted else name, parameter.detach()
    for name, part in module.named_modules():
        if isinstance(part, QuantizedLinear):
            yield f"{name.removesuffix('.base')}.weight", part


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, module: Any) -> None:
    """Writes them as they come, in files of at most SHARD bytes. They must be all that `module` has, or whoever reads
    them would keep some of its old ones."""
    expected = {
        name: (held.out_features, held.in_features) if isinstance(held, QuantizedLinear) else held.shape
        for name, held in list_base_entries(module)
    }
    shard: dict[str, Tensor] = {}
    num_bytes = num_files = 0

    def write() -> None:
        save_file(shard, folder / f"model-{num_files:05d}.safetensors", metadata={"format": "pt"})

    for name, tensor in weights:
        if expected.pop(name, None) != tensor.shape:
            raise UserError(f"weight {name!r} {list(tensor.shape)} is none of {type(module).__name__}'s own")
        if shard and num_bytes + tensor.nbytes > SHARD:
            write()
            shard, num_bytes, num_files = {}, 0, num_files + 1
        shard[name] = tensor.cpu().contiguous()
        num_bytes += tensor.nbytes
    write()
    if expected:
        raise UserError(f"{len(expected)} weights of {type(module).__name__} are missing, such as {min(expected)!r}")


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

"""All that is trained of a model beside its frozen weights: adapted layers, and for adapters that come from peft also
whole weights (`modules_to_save`, biases) and single rows of embeddings (`trainable_token_indices`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aurify.engine.adapter_files import TOKENS, write_adapter
from aurify.engine.lora import AdapterState, LoraConfig, LoraEmbedding, LoraLinear, Use
from aurify.errors import UserError
from aurify.models.quantized_linear import QuantizedLinear

HEADS = ("score", "lm_head")  # never adapted unless an adapter from elsewhere does


@dataclass(frozen=True, slots=True)
class Extra:
    """A weight of the base model that belongs to an adapter."""

    key: str  # its name in the adapter's file
    parameter: nn.Parameter
    trained: bool = True
    rows: Tensor | None = None  # the only ones that are trained; None: all

    def tensor(self) -> Tensor:
        return self.parameter if self.rows is None else self.parameter[self.rows]


@dataclass
class Adapter:
    """The adapted layers of one model, and what else is trained with them."""

    dropout: float
    layers: dict[str, LoraLinear | LoraEmbedding]
    description: dict[str, Any]  # as in adapter_config.json
    state: AdapterState = field(default_factory=AdapterState)
    extras: list[Extra] = field(default_factory=list)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for layer in self.layers.values() for parameter in layer.parameters_by_suffix().values()]

    @property
    def changes_base(self) -> bool:
        """Whether training changes weights that switching the adapter off does not bring back."""
        return any(extra.trained for extra in self.extras)

    def trained_rows(self) -> dict[nn.Parameter, Tensor]:
        return {extra.parameter: extra.rows for extra in self.extras if extra.rows is not None}

    def merge(self) -> None:
        for layer in self.layers.values():
            layer.merge()

    @torch.no_grad()
    def merge_for_good(self, module: nn.Module) -> None:
        """Leaves plain layers with the merged weights, all of them trainable."""
        for name, layer in self.layers.items():
            layer.base.weight.copy_(layer.plain_weight())
            replace_layer(module, name, layer.base)
        module.requires_grad_(True)

    @contextmanager
    def using(self, use: Use, *, dropping: bool = False) -> Iterator[None]:
        """For this thread."""
        previous = self.state.use, self.state.dropping
        self.state.use, self.state.dropping = use, dropping
        try:
            yield
        finally:
            self.state.use, self.state.dropping = previous

    def as_now(self) -> AbstractContextManager[None]:
        """What this thread uses now, for another thread."""
        return self.using(self.state.use, dropping=self.state.dropping)

    def reference_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What the adapter began with; nothing for a fresh one, whose reference is the model below it."""
        for name, layer in self.layers.items():
            for part, tensor in zip("ABm", layer.reference or (), strict=False):
                if tensor is not None:
                    yield f"{name} {layer.scale} {part}", tensor

    def save(self, folder: Path, base_name: str, header: Mapping[str, str]) -> None:
        """Writes what peft reads. header: see `write_adapter`."""
        tensors: dict[str, Tensor] = {
            f"{name}.{suffix}": parameter
            for name, layer in self.layers.items()
            for suffix, parameter in layer.parameters_by_suffix().items()
        }
        tensors |= {extra.key: extra.tensor() for extra in self.extras}
        description = self.description | {"base_model_name_or_path": base_name, "inference_mode": True}
        write_adapter(folder, description, tensors, header)


def replace_layer(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)


def is_linear_layer(layer: nn.Module) -> bool:
    """Conv1D is a linear layer of GPT-2 and its kind."""
    return type(layer) in (nn.Linear, QuantizedLinear) or type(layer).__name__ == "Conv1D"


def find_lm_head(module: Any) -> nn.Module | None:
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def choose_adapted_layers(module: nn.Module, config: LoraConfig) -> dict[str, Any]:
    """The layers that `config.targets` names. A name that fits none is an error."""
    head = find_lm_head(module)
    linears = {
        name: layer
        for name, layer in module.named_modules()
        if is_linear_layer(layer) and layer is not head and name.rpartition(".")[2] not in HEADS
    }
    if isinstance(config.targets, str) and config.targets != "all-linear":
        raise UserError(f"lora.targets: {config.targets!r} is not known; write 'all-linear' or a list of layer names")
    available = dict.fromkeys(name.rpartition(".")[2] for name in linears)
    targets = available if config.targets == "all-linear" else config.targets
    if unknown := [target for target in targets if target not in available]:
        raise UserError(
            f"lora.targets: no layer is named {unknown[0]!r}; this model has {', '.join(sorted(available))}"
        )
    if not targets:
        raise UserError(f"lora.targets: it names no layer; this model has {', '.join(sorted(available)) or 'none'}")
    return {name: layer for name, layer in linears.items() if name.rpartition(".")[2] in targets}


def attach_adapter(module: nn.Module, config: LoraConfig, score: nn.Linear | None, seed: int) -> Adapter:
    """Freezes the model and puts fresh adapters (B = 0: nothing changes yet) on the layers that `config.targets`
    names. A reward model's head is trained with them."""
    generator, chosen = torch.Generator().manual_seed(seed), choose_adapted_layers(module, config)
    module.requires_grad_(False)
    state, scale = AdapterState(), config.alpha / config.rank
    layers: dict[str, LoraLinear | LoraEmbedding] = {}
    for name, layer in chosen.items():
        layers[name] = LoraLinear(
            layer, state, rank=config.rank, scale=scale, dropout=config.dropout, generator=generator
        )
        replace_layer(module, name, layers[name])
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": any(not isinstance(layer, nn.Linear) for layer in chosen.values()),
    }
    adapter = Adapter(config.dropout, layers, description, state)
    train_score_head(adapter, score)
    return adapter


def train_score_head(adapter: Adapter, score: nn.Linear | None) -> None:
    if score is None:
        return
    for name, parameter in score.named_parameters():
        if not any(extra.parameter is parameter for extra in adapter.extras):
            adapter.extras.append(Extra(f"score.{name}", parameter))
        parameter.requires_grad_(True)
    saved = adapter.description.get("modules_to_save") or []
    adapter.description |= {"task_type": "SEQ_CLS", "modules_to_save": sorted({*saved, "score"})}


def train_new_embedding_rows(adapter: Adapter, module: Any, num: int) -> None:
    """Rows that were added for new tokens are trained with a fresh adapter, as peft's trainable tokens. The whole
    weight is saved beside them, so that its size is known."""
    parts = {"embedding": module.get_input_embeddings(), "head": find_lm_head(module)}
    names = {id(part): name for name, part in module.named_modules() if num and part is not None}
    indices: dict[str, list[int]] = {}
    for part in parts.values():
        if not num or part is None or any(extra.parameter is part.weight for extra in adapter.extras):
            continue
        name, size = names[id(part)], len(part.weight)
        rows = torch.arange(size - num, size, device=part.weight.device)
        indices[name.rpartition(".")[2]] = rows.tolist()
        adapter.extras.append(Extra(f"{name}.{TOKENS}", part.weight.requires_grad_(True), rows=rows))
        adapter.extras.append(Extra(f"{name}.weight", part.weight, trained=False))
    if indices:
        adapter.description["trainable_token_indices"] = indices

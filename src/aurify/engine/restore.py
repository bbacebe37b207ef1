"""Puts a saved adapter back on its base model, to be trained on, or merged for good."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aurify.engine.adapter import (
    HEADS,
    Adapter,
    Extra,
    attach_adapter,
    find_lm_head,
    is_linear_layer,
    replace_layer,
    train_new_embedding_rows,
    train_score_head,
)
from aurify.engine.adapter_files import PREFIX, TOKENS, NeedsMerging, SavedAdapter, read_adapter
from aurify.engine.lora import AdapterState, LoraConfig, LoraEmbedding, LoraLinear
from aurify.errors import UserError
from aurify.models.model import LoadedModel


@torch.no_grad()
def restore_adapter(module: Any, saved: SavedAdapter, dropout: float, score: nn.Linear | None) -> Adapter:
    """Freezes the model and puts the saved adapter on it."""
    module.requires_grad_(False)
    whole = {name.rpartition(".")[0] for name in saved.tensors if saved.trains_module(name)}
    untie_embedding(module, whole | {*saved.layers()})
    head, state = find_lm_head(module), AdapterState()
    layers: dict[str, LoraLinear | LoraEmbedding] = {}
    for name, tensors in saved.layers().items():
        if is_other_adapter_head(module, name):
            continue
        base = get_adapted_layer(module, name, saved.folder)
        a = tensors.get("lora_A.weight", tensors.get("lora_embedding_A"))
        if a is None:
            raise UserError(f"{saved.folder}: adapter weight '{PREFIX}{name}.lora_A.weight' is missing")
        rank = a.shape[0]
        if "lora_embedding_A" in tensors:
            layer: Any = LoraEmbedding(base, state, rank=rank, scale=saved.scale(name, rank))
        else:
            layer = LoraLinear(
                base,
                state,
                rank=rank,
                scale=saved.scale(name, rank),
                dropout=dropout,
                dora="lora_magnitude_vector" in tensors,
                is_head=base is head,
            )
        for suffix, parameter in layer.parameters_by_suffix().items():
            fill_adapter_parameter(parameter, tensors.get(suffix), f"{name}.{suffix}", saved.folder)
        replace_layer(module, name, layer)
        layers[name] = layer
    description = saved.description | {"lora_dropout": dropout}
    adapter = Adapter(dropout, layers, description, state, load_adapter_extras(module, saved, layers))
    train_score_head(adapter, score)
    for layer in layers.values():
        layer.merge()
        layer.keep_reference()
    return adapter


def get_adapted_layer(module: nn.Module, name: str, folder: Path) -> Any:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{folder}: adapter weights fit no layer of this model, such as those of {name!r}; it belongs to another "
            "base model"
        ) from None
    if not is_linear_layer(layer) and type(layer) is not nn.Embedding:
        raise NeedsMerging(f"{folder}: an adapter on {type(layer).__name__} ({name}) is not supported", folder)
    return layer


def fill_adapter_parameter(parameter: Tensor, saved: Tensor | None, name: str, folder: Path) -> None:
    if saved is None or saved.shape != parameter.shape:
        found = "missing" if saved is None else list(saved.shape)
        raise UserError(
            f"{folder}: adapter weight '{PREFIX}{name}' is {found}; this model needs {list(parameter.shape)}"
        )
    parameter.copy_(saved)


def is_other_adapter_head(module: nn.Module, name: str) -> bool:
    """A part of a head that this model does not have: a reward model's, or that of the language model below one."""
    head = name.partition(".")[0]
    return head in HEADS and not hasattr(module, head)


def load_adapter_extras(
    module: nn.Module, saved: SavedAdapter, layers: dict[str, LoraLinear | LoraEmbedding]
) -> list[Extra]:
    """Copies whole weights and single rows of the adapter into the model, and has them trained if they were."""
    parameters: dict[str, nn.Parameter] = dict(module.named_parameters(remove_duplicate=False))
    extras = []
    adapted = {f"{name}.{suffix}" for name, layer in layers.items() for suffix in layer.parameters_by_suffix()}
    for key, tensor in sorted(saved.tensors.items(), key=lambda item: item[0].endswith(TOKENS)):  # rows come last
        if key in adapted or is_other_adapter_head(module, key):
            continue
        if key.endswith(f".{TOKENS}"):
            layer = key.removesuffix(f".{TOKENS}")
            parameter, rows = parameters.get(f"{layer}.weight"), torch.tensor(saved.token_rows(layer), dtype=torch.long)
            if parameter is None or len(rows) != len(tensor):
                raise UserError(
                    f"{saved.folder}: trainable_token_indices name {len(rows)} rows of {layer!r}, "
                    f"and its file has {len(tensor)}; copy the whole folder again"
                )
            parameter[rows] = tensor.to(parameter.dtype)
            parameter.requires_grad_(True)
            extras.append(Extra(key, parameter, rows=rows.to(parameter.device)))
            continue
        name = key.replace(".base_layer.", ".")
        parameter = parameters.get(name, parameters.get(key.replace(".base_layer.", ".base.")))
        if parameter is None:
            raise UserError(
                f"{saved.folder}: adapter weights fit no layer of this model, such as {PREFIX + key!r}; it belongs to "
                "another base model"
            )
        fill_adapter_parameter(parameter, tensor, key, saved.folder)
        trained = saved.trains_module(name)
        parameter.requires_grad_(trained)
        extras.append(Extra(key, parameter, trained))
    return extras


def untie_embedding(module: Any, changed: Collection[str]) -> None:
    """peft changes the embedding or the head alone if they share a weight. So they get one each if one of the two is
    among the `changed` layers."""
    embedding, head = module.get_input_embeddings(), find_lm_head(module)
    if head is None or head.weight is not embedding.weight:
        return
    names = {id(part): name for name, part in module.named_modules(remove_duplicate=False) if part in (embedding, head)}
    if any(name in changed for name in names.values()):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        module.config.tie_word_embeddings = module.config.get_text_config().tie_word_embeddings = False


def open_adapter(model: LoadedModel, lora: LoraConfig | None, seed: int) -> Adapter | None:
    """The adapter that is trained: a fresh one, or that of the model's adapter folder. Without `lora` the folder's is
    merged into the module, and all weights are trained; a quantised module, which is only read then, keeps it beside
    its weights."""
    module, folder, score = model.module, model.adapter, getattr(model.module, "score", None)
    if folder is None:
        if lora is None:
            return None
        adapter = attach_adapter(module, lora, score, seed)
        train_new_embedding_rows(adapter, module, model.num_new_rows)
        adapter.merge()
        return adapter
    saved = read_adapter(folder)
    if lora is None:
        adapter = restore_adapter(module, saved, 0.0, score)
        if model.quantized is not None:
            return adapter
        adapter.merge_for_good(module)
        return None
    check_same_adapter(lora, saved.rank, saved.alpha, saved.layers(), str(folder))
    return restore_adapter(module, saved, lora.dropout, score)


def check_same_adapter(lora: LoraConfig, rank: int, alpha: float, layers: Iterable[str], owner: str) -> None:
    """A stage that goes on with an adapter cannot change its form. owner: the folder or the stage that it is from."""
    if (rank, alpha) != (lora.rank, lora.alpha):
        raise UserError(
            f"lora: rank {lora.rank} and alpha {lora.alpha} differ from the adapter of {owner} ({rank}, {alpha}), "
            "which this stage goes on with; give the same, or lora: null"
        )
    if lora.targets != "all-linear":
        adapted = {name.rpartition(".")[2] for name in layers}
        if adapted != {target.rpartition(".")[2] for target in lora.targets}:
            raise UserError(
                f"lora.targets: {lora.targets} differ from the layers of the adapter of {owner} "
                f"({', '.join(sorted(adapted))}), which this stage goes on with; leave targets out"
            )

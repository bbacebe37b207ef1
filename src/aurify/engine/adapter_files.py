"""Adapter folders in the format of peft: what they hold, and which kinds of adapter we train on.

The weights decide: which layers are adapted, and with which rank, is read from the names and shapes in the file. So it
does not matter how `target_modules` named them (all-linear, full or partial names, a regular expression, numbers of
layers)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aurify.errors import UserError

CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
DEFAULT = 8  # rank and alpha, where an old adapter does not name them
TOKENS = "token_adapter.trainable_tokens_delta"
# suffix of a name -> the part of an adapted layer
PARTS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
# options that say which layers are adapted, or nothing about the weights
KNOWN = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *(
        "layers_to_transform",
        "lora_alpha",
        "merge_weights",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_type",
    ),
    *("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules"),
    *("task_type", "trainable_token_indices", "use_dora", "use_rslora"),
}
PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
EMBEDDINGS = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these ways to begin take the adapter off the base


class NeedsMerging(UserError):
    """We cannot train on the adapter, and peft may be able to merge it."""

    def __init__(self, problem: str, folder: Path) -> None:
        super().__init__(f"{problem}; merge it into its base with: aurify merge {folder} {folder.name}-merged")
        self.problem = problem


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    folder: Path
    description: dict[str, Any]  # adapter_config.json
    tensors: dict[str, Tensor]  # by their names without PREFIX

    @property
    def rank(self) -> int:
        return int(self.description.get("r") or DEFAULT)

    @property
    def alpha(self) -> float:
        return float(self.description.get("lora_alpha") or DEFAULT)

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """Name of an adapted layer -> its tensors, by PARTS."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            for part in PARTS:
                if key.endswith(f".{part}"):
                    found.setdefault(key.removesuffix(f".{part}"), {})[part] = tensor
        return found

    def scale(self, layer: str, rank: int) -> float:
        """alpha / rank, or for rank-stabilised LoRA (arXiv 2312.03732) alpha / sqrt(rank), with the layer's alpha."""
        patterns: Mapping[str, float] = self.description.get("alpha_pattern") or {}
        alpha = next((float(a) for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), self.alpha)
        return alpha / (rank**0.5 if self.description.get("use_rslora") else rank)

    def token_rows(self, layer: str) -> list[int]:
        """Which rows of an embedding or head are trained by themselves."""
        rows = self.description.get("trainable_token_indices") or []
        if isinstance(rows, Mapping):
            return next((list(r) for name, r in rows.items() if f".{layer}".endswith(f".{name}")), [])
        return list(rows)

    def trains_module(self, parameter: str) -> bool:
        """Whether a parameter that is saved as a whole was trained, itself or with the module that it is part of, and
        not only saved because it was resized."""
        if parameter.endswith(".bias"):
            return True
        module = parameter.rpartition(".")[0]
        return any(f"{name}." in f"{module}." for name in self.description.get("modules_to_save") or ())


def read_adapter(folder: Path, *, header: bool = False) -> SavedAdapter:
    """Reads an adapter of peft or ours. One that we cannot train on is refused with the command that merges it. header:
    a safetensors file gives names and shapes alone, by tensors on PyTorch's device "meta"."""
    try:
        description = json.loads((folder / CONFIG_FILE).read_text())
        if (folder / WEIGHTS_FILE).exists():
            with safe_open(folder / WEIGHTS_FILE, "pt") as file:
                names = list(file.keys())
                if header:
                    tensors = {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}
                else:
                    tensors = {n: file.get_tensor(n) for n in names}
        else:
            tensors = torch.load(folder / OLD_WEIGHTS_FILE, map_location="cpu", weights_only=True)
    except (OSError, ValueError, SafetensorError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"adapter {str(folder)!r} cannot be read: {error}; copy the whole folder again") from error
    if reason := find_unsupported_adapter(description, tensors):
        problem = f"{folder / CONFIG_FILE}: {reason} is not supported"
        if lost := explain_unmergeable(description):
            raise UserError(f"{problem}; it cannot be merged either, for {lost}")
        raise NeedsMerging(problem, folder)
    return SavedAdapter(folder, description, {plain_adapter_key(key): tensor for key, tensor in tensors.items()})


def plain_adapter_key(key: str) -> str:
    """Without what peft puts before the names of layers, and without the adapter's name, which a plain state_dict
    has."""
    return re.sub(r"\.default(?=\.weight$|$)", "", key.removeprefix(PREFIX))


def find_unsupported_adapter(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """What an adapter has that we do not know; "" if there is nothing."""
    if description.get("peft_type") != "LORA":
        return f"peft_type {description.get('peft_type')}"
    begin = description.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(CHANGES_BASE):
        return f"init_lora_weights {begin!r}, which changes the base model,"
    others = sorted(name for name, value in description.items() if value and name not in KNOWN)
    if others:
        return f"{others[0]!r}"
    layers = {
        plain_adapter_key(key).rpartition(".lora_")[0] or plain_adapter_key(key).rpartition(".")[0]: key
        for key in tensors
    }
    tied = {layer: key for layer, key in layers.items() if layer.endswith(EMBEDDINGS) and not key.endswith(TOKENS)}
    if tied and description.get("ensure_weight_tying"):
        return f"'ensure_weight_tying' with {min(tied)}"
    head = next(
        (layer for layer in tied if any(plain_adapter_key(k) == f"{layer}.lora_magnitude_vector" for k in tensors)), ""
    )
    return f"'use_dora' on {head}" if head else ""


def explain_unmergeable(description: Mapping[str, Any]) -> str:
    """Why not even peft can merge the adapter, with the mend; "" if it may."""
    if description.get("peft_type") in PROMPTS:
        return "it adds to the prompt and not to the weights: train a LoRA on its base"
    if str(description.get("init_lora_weights")).startswith("pissa_niter"):
        return (
            "it changed its base at random: save it anew with peft's path_initial_model_for_weight_conversion, which "
            "makes a plain LoRA of it"
        )
    return "it adds layers to its base: train a LoRA on its base" if description.get("layer_replication") else ""


def write_adapter(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    """header: what Aurify is to know of the base beside `base_model_name_or_path`: the name under which it finds it
    (`origin`), and how it was quantised. Empty ones are left out."""
    named = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / WEIGHTS_FILE, metadata={"format": "pt"} | {k: v for k, v in header.items() if v})
    if not description.get("task_type") and not description.get("auto_mapping"):  # peft asks for one of them
        description = {**description, "task_type": "CAUSAL_LM"}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")

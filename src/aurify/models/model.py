"""Loads models. A name is a hub id, a local folder, a GGUF file, a short name of the catalogue, an adapter folder, or
"random:tiny": a two-layer model with a byte-level tokenizer, made in code, for tests and for trying a recipe in
seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from aurify.hardware import choose_device, choose_dtype
from aurify.models.embeddings import add_embedding_rows, check_vocabulary, resize_embedding_for_adapter
from aurify.models.loading import (
    RANDOM_TINY,
    ModelFiles,
    add_scalar_head,
    build_empty_model,
    cast_weights,
    choose_other_padding,
    load_gguf,
    load_model_folder,
    read_tokenizer,
)
from aurify.models.names import resolve_model
from aurify.models.quantize import Quantization, choose_quantization, load_quantized
from aurify.models.tiny import byte_tokenizer, random_llama

Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelConfig:
    name: str  # a catalogue name, a hub id, a folder, a GGUF file or an adapter folder
    dtype: Dtype = "auto"  # auto: bfloat16 where the hardware multiplies it
    device: Device = "auto"  # auto: the GPU where there is one
    quantize: Quantization | None = None  # the base's layers, in 4 bits (nf4) or 8 (int8); needs lora
    resize_embeddings: bool = False  # give tokens that were added to the tokenizer rows of the embedding


@dataclass
class LoadedModel:
    module: Any  # *ForCausalLM, or *ForSequenceClassification with one label
    tokenizer: Any
    name: str  # what an adapter names as its base
    adapter: Path | None = None  # folder of the adapter to go on with
    dtype_reason: str = "as given"  # why the weights have their dtype
    origin: str = ""  # the catalogue's name of a model that it made; its weights are near those of the hub
    num_new_rows: int = 0  # of the embedding, for tokens that were added
    quantized: str | None = None  # nf4, fp4 or int8: the layers' weights are codes

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return read_model_vocabulary(self.module)

    @property
    def max_context(self) -> int:
        return read_max_context(self.module)


def load_model(
    config: ModelConfig | str,
    *,
    dtype: Dtype | torch.dtype | None = None,
    device: Device | None = None,
    scalar_head: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """dtype and device: instead of those of the config. scalar_head: a reward model, whose new head (if the folder has
    none) is drawn from `seed`."""
    config = ModelConfig(config) if isinstance(config, str) else config
    if dtype is not None:
        config = replace(config, dtype=str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
    if device is not None:
        config = replace(config, device=device)
    target, files = choose_device(config.device), resolve_model(config.name)
    choice, kind = choose_dtype(config.dtype, target), choose_quantization(config.quantize, files)
    if kind is not None:
        tokenizer = read_tokenizer(files)
        module = load_quantized(files, kind, choice.dtype, target, scalar_head, seed)
    elif files.base == RANDOM_TINY:
        loaded = tiny_model(scalar_head=scalar_head, seed=seed)
        module, tokenizer = cast_weights(loaded.module, choice.dtype), loaded.tokenizer
    else:
        tokenizer = read_tokenizer(files)
        if files.gguf is None:
            module = load_model_folder(files, choice.dtype, scalar_head, seed)
        else:
            module = load_gguf(files.gguf, choice.dtype)
            module = add_scalar_head(module, seed) if scalar_head else module
    num_new = fit_model_embedding(module, tokenizer, files, config)
    if scalar_head:
        module.config.pad_token_id = choose_other_padding(tokenizer).pad_token_id
    # transformers gives the padding token's embedding no gradient; where that is the end token, it has to be trained.
    module.get_input_embeddings().padding_idx = None
    module = module.to(target).eval()
    return LoadedModel(module, tokenizer, files.base, files.adapter, choice.reason, files.origin, num_new, kind)


def load_skeleton(config: ModelConfig, *, scalar_head: bool = False) -> LoadedModel:
    """The model without its weights, which takes no memory and a second: its layers, its configuration and its
    tokenizer say what fits it."""
    files = resolve_model(config.name)
    tokenizer = read_tokenizer(files)
    module = (
        tiny_model(scalar_head=scalar_head).module
        if files.base == RANDOM_TINY
        else build_empty_model(files, scalar_head)
    )
    num_new = fit_model_embedding(module, tokenizer, files, config)
    return LoadedModel(module, tokenizer, files.base, files.adapter, origin=files.origin, num_new_rows=num_new)


def fit_model_embedding(module: Any, tokenizer: Any, files: ModelFiles, config: ModelConfig) -> int:
    """Gives every token its row of the embedding, or raises. Returns how many rows are new."""
    if files.adapter is not None:
        resize_embedding_for_adapter(module, files.adapter)
    num_new = add_embedding_rows(module, tokenizer) if config.resize_embeddings else 0
    check_vocabulary(tokenizer, read_model_vocabulary(module), config.name)
    return num_new


def read_model_vocabulary(module: Any) -> int:
    """Rows of the embedding of a model."""
    return int(module.get_input_embeddings().weight.shape[0])


def read_max_context(module: Any) -> int:
    """Tokens that a model can read at once."""
    return int(getattr(module.config.get_text_config(), "max_position_embeddings", 1 << 20))


def load_tokenizer(name: str) -> Any:
    return read_tokenizer(resolve_model(name))


def tiny_model(*, scalar_head: bool = False, seed: int = 0, **sizes: Any) -> LoadedModel:
    """A random two-layer Llama, the same for the same seed. sizes: values of its configuration."""
    tokenizer = byte_tokenizer()
    return LoadedModel(random_llama(tokenizer, scalar_head=scalar_head, seed=seed, **sizes), tokenizer, RANDOM_TINY)

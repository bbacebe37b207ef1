"""Loads models. A name is a hub id, a local folder, a GGUF file, a short name of the catalogue, an adapter folder, or
"random:tiny": a two-layer model with a byte-level tokenizer, made in code, for tests and for trying a recipe in
seconds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aurify.errors import UserError
from aurify.hardware import choose_device, choose_dtype
from aurify.models.loading import (
    RANDOM_TINY,
    add_scalar_head,
    cast_weights,
    choose_other_padding,
    load_folder,
    load_gguf,
    read_tokenizer,
)
from aurify.models.names import resolve_model
from aurify.models.tiny import byte_tokenizer, random_llama

log = logging.getLogger("aurify")


@dataclass(frozen=True)
class ModelConfig:
    name: str  # a catalogue name, a hub id, a folder, a GGUF file or an adapter folder
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware multiplies it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one


@dataclass
class LoadedModel:
    module: Any  # *ForCausalLM, or *ForSequenceClassification with one label
    tokenizer: Any
    name: str  # what an adapter names as its base
    adapter: Path | None = None  # folder of the adapter to go on with
    dtype_reason: str = "as given"  # why the weights have their dtype


def load_model(config: ModelConfig | str, *, scalar_head: bool = False, seed: int = 0) -> LoadedModel:
    """scalar_head: a reward model, whose new head (if the folder has none) is drawn from `seed`."""
    config = ModelConfig(config) if isinstance(config, str) else config
    device, files = choose_device(config.device), resolve_model(config.name)
    choice = choose_dtype(config.dtype, device)
    if files.base == RANDOM_TINY:
        loaded = tiny_model(scalar_head=scalar_head, seed=seed)
        module, tokenizer = cast_weights(loaded.module, choice.dtype), loaded.tokenizer
    else:
        tokenizer = read_tokenizer(files)
        if files.gguf is None:
            module = load_folder(files, choice.dtype, scalar_head, seed)
        else:
            module = load_gguf(files.gguf, choice.dtype)
            module = add_scalar_head(module, seed) if scalar_head else module
    check_vocabulary(tokenizer, module.get_input_embeddings().weight.shape[0], config.name)
    if scalar_head:
        module.config.pad_token_id = choose_other_padding(tokenizer).pad_token_id
    # transformers gives the padding token's embedding no gradient; where that is the end token, it has to be trained.
    module.get_input_embeddings().padding_idx = None
    return LoadedModel(module.to(device).eval(), tokenizer, files.base, files.adapter, choice.reason)


def load_tokenizer(name: str) -> Any:
    return read_tokenizer(resolve_model(name))


def tiny_model(*, scalar_head: bool = False, seed: int = 0, **sizes: Any) -> LoadedModel:
    """A random two-layer Llama, the same for the same seed. sizes: values of its configuration."""
    tokenizer = byte_tokenizer()
    return LoadedModel(random_llama(tokenizer, scalar_head=scalar_head, seed=seed, **sizes), tokenizer, RANDOM_TINY)


def check_vocabulary(tokenizer: Any, num_rows: int, name: str) -> None:
    """Every token that a text or the chat template can bring must have an embedding. Other added tokens, such as that
    of an image in a tokenizer that several models share, may lack one."""
    beyond = {text: token for text, token in tokenizer.get_vocab().items() if token >= num_rows}
    if not beyond:
        return
    added = {str(entry) for entry in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    written = {tokenizer.eos_token, tokenizer.bos_token} | {t for t in added if t in str(tokenizer.chat_template or "")}
    needed = sorted((token, text) for text, token in beyond.items() if text not in added or text in written)
    if needed:
        token, text = needed[0]
        raise UserError(
            f"model {name!r}: its tokenizer has {len(needed)} tokens without an embedding, such as {text!r} ({token}); "
            f"the model has {num_rows} rows. The tokenizer belongs to another model, or tokens were added without "
            "model.resize_token_embeddings(len(tokenizer)); mend the folder"
        )
    log.warning(
        "%s: added tokens without an embedding: %s; the chat template writes none of them, and a prompt that has one "
        "is refused",
        name,
        ", ".join(sorted(beyond)[:5]),
    )

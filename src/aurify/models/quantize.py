"""Which weights are quantised, and how such a model is read and written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.models.loading import (
    RANDOM_TINY,
    ModelFiles,
    cast_weights,
    explain_load_error,
    load_gguf,
    load_model_folder,
    read_adapter_header,
    read_model_dtype,
    read_tokenizer,
    save_model,
)
from aurify.models.names import resolve_model
from aurify.models.quantized_linear import adopt_layers, import_bitsandbytes
from aurify.models.tiny import random_llama

Quantization = Literal["nf4", "int8"]
READABLE = (*get_args(Quantization), "fp4")  # of bitsandbytes; folders of others are left to transformers
HEADER = "quantize"  # what an adapter says of the base that it was trained on


def choose_quantization(asked: str | None, files: ModelFiles) -> str | None:
    """How the base is quantised: as asked, as its files are, or as it was when its adapter was trained."""
    if asked is not None:
        check_kind(asked, "model.quantize")
    stored = read_quantization(files)
    trained = None if files.adapter is None else read_adapter_header(files.adapter)[1].get(HEADER)
    wishes = {"model.quantize asks for": asked, "its files are in": stored, "its adapter was trained on": trained}
    given = {why: kind for why, kind in wishes.items() if kind is not None}
    if len({*given.values()}) > 1:
        told = ", but ".join(f"{why} {kind}" for why, kind in given.items())
        raise UserError(f"model {files.base!r}: {told}; leave model.quantize out, or take the model that it fits")
    kind = next(iter(given.values()), None)
    if kind not in READABLE:
        return None
    if files.gguf is not None:
        raise UserError(
            f"model {files.base!r}: a GGUF file is only read as a whole. Quantise it once, with: aurify quantize "
            f"{files.gguf} {files.gguf.stem}-{kind} --to {kind}; then give that folder as the model"
        )
    return kind


def check_kind(kind: str, where: str) -> None:
    known = get_args(Quantization)
    if kind not in known:
        hint = did_you_mean(kind, known, listing=False)
        raise UserError(f"{where}: {kind!r} is not known; give {' or '.join(known)}{hint}")


def read_quantization(files: ModelFiles) -> str | None:
    """Of the files of a model; None if their weights are whole."""
    if files.base == RANDOM_TINY or files.gguf is not None:
        return None
    from transformers import AutoConfig

    with explain_load_error(files.base):
        stored = getattr(AutoConfig.from_pretrained(files.source), "quantization_config", None)
    if stored is None:
        return None
    if stored.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return str(stored["quant_method"])
    return "int8" if stored.get("load_in_8bit") else str(stored.get("bnb_4bit_quant_type", "fp4"))


def load_quantized(
    files: ModelFiles, kind: str, dtype: torch.dtype, device: torch.device, scalar_head: bool, seed: int
) -> Any:
    """A model whose linear layers, but for its head, are quantised. dtype: of all else, and of what is computed."""
    module = load_codes(files, kind, device, scalar_head, seed)
    adopt_layers(module, dtype)
    return cast_weights(module, dtype)


def load_codes(files: ModelFiles, kind: str, device: torch.device, scalar_head: bool, seed: int) -> Any:
    """The model as transformers has it. Codes are made of weights in the dtype of the files, so they do not depend on
    the dtype that is computed in."""
    import_bitsandbytes()
    with as_folder(files, scalar_head, seed) as there:
        dtype, options = read_model_dtype(there), {"device_map": {"": device}}
        if read_quantization(there) is None:
            options["quantization_config"] = describe_for_transformers(kind, dtype)
        return load_model_folder(there, dtype, scalar_head, seed, **options)


@contextmanager
def as_folder(files: ModelFiles, scalar_head: bool, seed: int) -> Iterator[ModelFiles]:
    """transformers quantises what it reads from a folder, and nothing else."""
    if files.base != RANDOM_TINY and files.gguf is None:
        yield files
        return
    tokenizer = read_tokenizer(files)
    if files.gguf is None:
        module = random_llama(tokenizer, scalar_head=scalar_head, seed=seed)
    else:
        module = load_gguf(files.gguf, torch.bfloat16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        save_model(module, tokenizer, Path(scratch) / "model")
        yield ModelFiles(str(Path(scratch) / "model"))


def quantize_model(name: str, folder: Path, kind: str) -> int:
    """Writes a folder with quantised weights, which plain transformers loads as well. Returns their bytes."""
    check_kind(kind, "--to")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    files = resolve_model(name)
    if files.adapter is not None:
        raise UserError(f"{name} is an adapter; merge it first, with: aurify merge {name} {files.adapter.name}-merged")
    if stored := read_quantization(files):
        raise UserError(f"model {name!r}: its weights are in {stored} already; give the model that they were made from")
    save_model(load_codes(files, kind, torch.device("cpu"), False, 0), read_tokenizer(files), folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def describe_for_transformers(kind: str, dtype: torch.dtype) -> Any:
    """A configuration of transformers. dtype: that plain transformers is to compute in."""
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

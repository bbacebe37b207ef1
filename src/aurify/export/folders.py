"""Exports of safetensors: a plain folder that transformers loads, or an adapter for peft."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from aurify.engine.adapter_files import CONFIG_FILE
from aurify.engine.merge import merge_adapter
from aurify.errors import UserError
from aurify.export.agreement import Agreement, Trained, check_exported_folder
from aurify.models.loading import cast_weights, read_model_dtype, save_model
from aurify.models.model import load_model
from aurify.models.names import resolve_model

MAX_SHARD_SIZE = "5GB"
log = logging.getLogger("aurify")


def write_export_folder(name: str, trained: Trained, folder: Path, max_shard_size: str = MAX_SHARD_SIZE) -> Agreement:
    files = resolve_model(name)
    changed = files.adapter is not None or files.gguf is not None
    write_plain_export(name, folder, max_shard_size)
    return check_exported_folder(trained, folder, str(read_model_dtype(files)) if changed else "the same weights")


def write_plain_export(name: str, folder: Path, max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """A model with its adapter merged, in the dtype of its base."""
    files = resolve_model(name)
    if files.adapter is not None:
        merge_adapter(files.adapter, folder, max_shard_size)
    else:
        loaded = load_model(name, dtype="float32", device="cpu")
        save_model(cast_weights(loaded.module, read_model_dtype(files)), loaded.tokenizer, folder, max_shard_size)


def check_export_size(text: str) -> None:
    if not re.fullmatch(r"[1-9]\d*\s*[KMGT]B", text, re.IGNORECASE):
        raise UserError(f"--max-shard-size {text!r}: write it as 500MB or 5GB")


def export_adapter(name: str, trained: Trained, folder: Path) -> Agreement:
    """An adapter as it is, without its base."""
    source = resolve_model(name).adapter
    if source is None:
        raise UserError(f"{name} has no adapter, its weights are whole; `aurify export folder {name}` exports those")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*", "README.md"))
    base = str(json.loads((folder / CONFIG_FILE).read_text())["base_model_name_or_path"])
    if Path(base).exists():
        log.info("the adapter's base is a folder of this machine: %s; `aurify export folder` merges it in", base)
    return check_exported_folder(trained, folder, "the same weights")

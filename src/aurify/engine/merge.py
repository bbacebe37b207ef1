"""Merges an adapter into its base model, which gives a plain folder. Kinds that our own layers do not know are merged
by peft."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from aurify.engine.adapter_files import CONFIG_FILE, PREFIX
from aurify.engine.restore import open_adapter, untie_for
from aurify.errors import UserError
from aurify.files import require
from aurify.models.loading import cast_weights, read_adapter_header, read_stored_dtype, save_model
from aurify.models.model import LoadedModel, load_model
from aurify.models.names import resolve_model

log = logging.getLogger("aurify")


def merge_adapter(adapter: Path, folder: Path) -> None:
    """Computes in fp32 and writes in the dtype of the base."""
    if not (adapter / CONFIG_FILE).exists():
        raise UserError(f"{adapter} is no adapter folder: it has no {CONFIG_FILE}")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    is_reward_model = json.loads((adapter / CONFIG_FILE).read_text()).get("task_type") == "SEQ_CLS"

    def load() -> LoadedModel:
        return load_model(str(adapter), dtype="float32", device="cpu", scalar_head=is_reward_model)

    loaded = load()
    try:
        open_adapter(loaded, None, seed=0)
        module = loaded.module
    except UserError as reason:
        log.info("%s", str(reason).partition("; merge it")[0])
        module = merge_with_peft(load().module, adapter)
    save_model(cast_weights(module, read_stored_dtype(resolve_model(str(adapter)))), loaded.tokenizer, folder)


def merge_with_peft(module: Any, adapter: Path) -> Any:
    peft = require("peft", "bench", f"to merge {adapter}")
    names = [name.removeprefix(PREFIX) for name in read_adapter_header(adapter)[0]]
    untie_for(module, {name.rpartition(".")[0] for name in names})
    try:
        return peft.PeftModel.from_pretrained(module, str(adapter)).merge_and_unload()
    except Exception as error:
        raise UserError(f"{adapter}: peft cannot merge this adapter either: {error}") from error

"""Merges an adapter into its base model, which gives a plain folder. Kinds that our own layers do not know are merged
by peft."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from aurify.engine.adapter_files import CONFIG_FILE, EMBEDDINGS, PREFIX, NeedsMerging
from aurify.engine.restore import open_adapter, untie_embedding
from aurify.errors import UserError
from aurify.files import require
from aurify.models.loading import cast_weights, read_adapter_header, read_model_dtype, save_model
from aurify.models.model import LoadedModel, load_model
from aurify.models.names import resolve_model
from aurify.models.quantized_linear import dequantize_layers

# whole weights that peft may save beside an adapter of any kind
WHOLE_EMBEDDINGS = tuple(f"{name}{base}.weight" for name in EMBEDDINGS for base in ("", ".base_layer"))
RTOL, ATOL = 1e-2, 1e-2  # of a logit in fp32, before and after merging
log = logging.getLogger("aurify")


def merge_adapter(adapter: Path, folder: Path, max_shard_size: str = "50GB") -> None:
    """Computes in fp32 and writes in the dtype of the base."""
    if not (adapter / CONFIG_FILE).exists():
        raise UserError(f"{adapter} is no adapter folder: it has no {CONFIG_FILE}")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    is_reward_model = json.loads((adapter / CONFIG_FILE).read_text()).get("task_type") == "SEQ_CLS"

    def load() -> LoadedModel:
        loaded = load_model(str(adapter), dtype="float32", device="cpu", scalar_head=is_reward_model)
        dequantize_layers(loaded.module)  # the adapter was trained on the rounded weights, and is merged into them
        loaded.quantized = None
        return loaded

    loaded = load()
    try:
        open_adapter(loaded, None, seed=0)
        module = loaded.module
    except NeedsMerging as error:
        log.info("%s", error.problem)
        module = merge_with_peft(load().module, adapter)
    stored = read_model_dtype(resolve_model(str(adapter)))
    save_model(cast_weights(module, stored), loaded.tokenizer, folder, max_shard_size)


@torch.no_grad()
def merge_with_peft(module: Any, adapter: Path) -> Any:
    peft = require("peft", "bench", f"to merge {adapter}")
    names, description = read_adapter_header(adapter)[0], json.loads((adapter / CONFIG_FILE).read_text())
    if description["peft_type"] == "LORA" and not description.get("ensure_weight_tying"):
        # the other kinds change both of two tied layers
        untie_embedding(module, {name.removeprefix(PREFIX).rpartition(".")[0] for name in names})
    try:
        adapted = peft.PeftModel.from_pretrained(module, str(adapter))
        unread = sorted({*names} - {*peft.get_peft_model_state_dict(adapted)})
        if strange := [name for name in unread if not name.endswith(WHOLE_EMBEDDINGS)]:  # peft only warns of them
            raise UserError(f"it does not know the weight {strange[0]!r}, which belongs to another base model")
        probe = torch.arange(1, 9)[None]  # any tokens
        expected = adapted(probe).logits
        merged = adapted.merge_and_unload()
        if not torch.allclose(merged(probe).logits, expected, rtol=RTOL, atol=ATOL):
            raise UserError("it adds the change of a shared weight twice; train a LoRA without ensure_weight_tying")
        return merged
    except Exception as error:
        raise UserError(f"{adapter}: peft cannot merge this adapter either: {error}") from error

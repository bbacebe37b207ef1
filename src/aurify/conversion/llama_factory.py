"""Configs of LLaMA-Factory, with the data sets that its dataset_info.json describes (names and defaults of its
arguments of 2026)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aurify.conversion.common import convert_batch, convert_common, convert_steps, put_heldout, put_sources
from aurify.conversion.draft import Draft
from aurify.errors import UserError

STAGES = {"sft": "sft", "pt": "sft", "rm": "reward_model", "dpo": "dpo", "kto": "kto"}
PAIR_METHODS = {"orpo": "orpo", "simpo": "simpo"}
DEFAULTS = {
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "num_train_epochs": 3.0, "per_device_train_batch_size": 8,
    "lora_rank": 8, "cutoff_len": 2048, "lora_dropout": 0.0,
}  # fmt: skip
INFO = "dataset_info.json"
# its names of columns -> what the forms of docs/data.md call them, for alpaca, and where two answers are ranked
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
RANKED = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
BESIDE = {"system": "system", "history": "history", "tools": "tools", "messages": "messages", "kto_tag": "kto_tag"}
USUAL_TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content")}


def convert_llama_factory(given: dict[str, Any], method: str | None, folder: Path) -> Draft:
    """folder: that of the config; data sets are looked for here and there."""
    stage = str(given.get("stage", "sft"))
    if method is None and stage not in STAGES:
        mend = "take grpo or rloo, which need no critic" if stage == "ppo" else f"known: {', '.join(STAGES)}"
        raise UserError(f"stage: {stage!r} has no method here; {mend}")
    loss = str(given.get("pref_loss", "sigmoid"))
    method = method or (PAIR_METHODS.get(loss, "dpo") if stage == "dpo" else STAGES[stage])
    tuning = str(given.get("finetuning_type", "lora"))
    draft = Draft("LLaMA-Factory", method, given, DEFAULTS)
    for key in ("stage", "finetuning_type"):
        draft.pop(key)
    if tuning not in ("lora", "full"):
        draft.leave("finetuning_type", "here LoRA or all weights are trained; LoRA is taken", tuning)
    draft.take("model_name_or_path")
    convert_common(draft, optimizer="optim", schedule="lr_scheduler_type", rank="lora_rank", adapter=tuning != "full")
    convert_batch(draft, "per_device_train_batch_size")
    convert_registered_rows(draft, folder, "text" if stage == "pt" else None)
    draft.take("cutoff_len")
    draft.put("overlong", "cut_right", "LLaMA-Factory cuts rows above cutoff_len")
    if draft.pop("mask_history"):
        draft.put("train_on", "last", "mask_history")
    if draft.pop("train_on_prompt"):
        draft.leave("train_on_prompt", "questions are never trained; answers are", True)
    if draft.pop("use_dft_loss"):
        draft.put("algorithm.loss_type", "dft", "use_dft_loss")
    if draft.pop("disable_gradient_checkpointing"):
        draft.put("engine.checkpointing", False, "disable_gradient_checkpointing")
    convert_pair_options(draft, loss)
    convert_steps(draft, "num_train_epochs")
    return draft


def convert_pair_options(draft: Draft, loss: str) -> None:
    draft.pop("pref_loss")
    if draft.method == "dpo" and loss in ("hinge", "ipo"):
        draft.put("algorithm.loss_type", loss, "pref_loss")
    elif draft.method == "dpo" and loss != "sigmoid":
        draft.leave("pref_loss", "losses here: docs/preferences.md; that of DPO is taken", loss)
    if draft.method in ("dpo", "kto", "orpo", "simpo"):
        draft.defaults |= {"pref_beta": 0.1} | ({"simpo_gamma": 0.5} if draft.method == "simpo" else {})
        for key in ("pref_beta", "simpo_gamma"):
            draft.take(key)
    for key, methods in {
        "pref_ftx": ("dpo", "simpo"), "dpo_label_smoothing": ("dpo",), "ld_alpha": ("dpo",),
        "kto_chosen_weight": ("kto",), "kto_rejected_weight": ("kto",),
    }.items():  # fmt: skip
        if draft.method in methods:
            draft.take(key)


# ---------------------------------------------------------------------- data sets by name


def convert_registered_rows(draft: Draft, folder: Path, form: str | None) -> None:
    given_folder = draft.pop("dataset_dir", "data")
    limit = draft.pop("max_samples")
    known = read_dataset_info(str(given_folder), folder)
    options = {key: value for key, value in (("max_rows", limit), ("form", form)) if value is not None}
    sources = [
        {**describe_registered(draft, name, known, str(given_folder), folder, form), **options}
        for name in split_names(draft.pop("dataset"))
    ]
    if sources:
        put_sources(draft, sources, "dataset" if limit is None else "dataset, max_samples of each")
    share, tests = draft.read_number("val_size", 0), split_names(draft.pop("eval_dataset"))
    path = None
    if len(tests) == 1:
        path = describe_registered(draft, tests[0], known, str(given_folder), folder)["path"]
    told = "val_size: LLaMA-Factory trains on all rows without it"
    put_heldout(draft, path, tests, share, ("eval_dataset", "val_size"), told)


def split_names(value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else value or []
    return [str(name).strip() for name in names]


def find_dataset_folder(given: str, folder: Path) -> Path:
    return next((at for at in (Path(given), folder / given) if (at / INFO).is_file()), Path(given))


def read_dataset_info(given: str, folder: Path) -> dict[str, Any]:
    path = find_dataset_folder(given, folder) / INFO
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    return info if isinstance(info, dict) else {}


def describe_registered(
    draft: Draft, name: str, known: dict[str, Any], given: str, folder: Path, form: str | None = None
) -> dict[str, Any]:
    """Path, subset, split and renamed columns of a data set."""
    info, at = dict(known.get(name) or {}), find_dataset_folder(given, folder)
    if not info:
        draft.notes.append(f"data: {at / INFO} has no {name!r}, or is not here; set the path of its rows")
        return {"path": str(at / name)}
    path = info.pop("hf_hub_url", None) or str(at / str(info.pop("file_name", name)))
    source = {"path": path, "subset": info.pop("subset", None), "split": info.pop("split", None)}
    ranked, chats = bool(info.pop("ranking", False)), info.pop("formatting", "alpaca") == "sharegpt"
    columns, tags = dict(info.pop("columns", {})), dict(info.pop("tags", {}))
    wanted = {"prompt": "text"} if form else BESIDE | (RANKED if ranked else {} if chats else ALPACA)
    renamed = {columns.pop(key): new for key, new in wanted.items() if key in columns}
    renamed = {old: new for old, new in renamed.items() if old != new and (old, new) != ("conversations", "messages")}
    for key, names in USUAL_TAGS.items():
        if tags.pop(key, names[0]) not in names:
            draft.leave(f"{name}.tags.{key}", "messages have role and content, or from and value", "?")
    for part, left in (("columns", columns), ("", info)):
        for key, value in left.items():
            text = "columns are found by what is in the rows; see data.maps"
            draft.leave(".".join(filter(None, (name, part, key))), text, value)
    maps = [{"name": "rename", "columns": renamed}] if renamed else None
    return {key: value for key, value in {**source, "maps": maps}.items() if value is not None}

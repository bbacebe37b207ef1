"""Configs of axolotl (names and defaults of its schema of 2026)."""

from __future__ import annotations

from typing import Any

from aurify.conversion.common import (
    convert_batch,
    convert_common,
    convert_source,
    convert_steps,
    put_heldout,
    put_sources,
)
from aurify.conversion.draft import Draft, flatten
from aurify.conversion.trl import convert_trl_online
from aurify.errors import UserError

METHODS = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo"}
DEFAULTS = {
    "lr_scheduler": "cosine", "num_epochs": 1.0, "micro_batch_size": 1, "sequence_len": 512, "num_generations": 8,
    "max_completion_length": 512, "lora_dropout": 0.0,
}  # fmt: skip
COLUMNS = {  # of a type of one's own -> the usual names
    "field_system": "system", "field_instruction": "instruction", "field_input": "input", "field_output": "output",
    "field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected", "field_completion": "completion",
    "field_label": "label",
}  # fmt: skip
SPEAKERS = {"user", "human", "assistant", "gpt", "system", "tool"}  # known without a word
TAGS = {"role": ("role", "from"), "content": ("content", "value")}
PROMPTS = "prompts are written by the model's chat template"


def convert_axolotl(given: dict[str, Any], method: str | None) -> Draft:
    rl = given.get("rl")
    if method is None and rl not in (None, False) and rl not in METHODS:
        raise UserError(f"rl: {rl!r} is not known here; axolotl's methods that are: {', '.join(METHODS)}")
    method = method or ("reward_model" if given.get("reward_model") else METHODS[rl] if rl else "sft")
    draft = Draft("axolotl", method, flatten(given, "trl"), DEFAULTS)
    for key in ("rl", "reward_model"):
        draft.pop(key)
    if rl == "ipo":
        draft.put("algorithm.loss_type", "ipo", "rl: ipo")
    adapter = draft.pop("adapter")
    if adapter not in (None, "", "lora", "qlora"):
        draft.leave("adapter", "adapters here are LoRA, which is taken", adapter)
    draft.take("base_model")
    convert_common(draft, optimizer="optimizer", schedule="lr_scheduler", rank="lora_r", adapter=bool(adapter))
    if draft.online:
        draft.given.setdefault("dataset_name", read_first_path(draft))
        draft.given.setdefault("per_device_train_batch_size", draft.pop("micro_batch_size"))
        convert_trl_online(draft)
    else:
        total = draft.pop("batch_size")
        convert_batch(draft, "micro_batch_size")
        if total is not None:
            draft.put("batch_size", int(total), "batch_size")
        convert_axolotl_rows(draft)
        for key in ("rl_beta", "orpo_alpha", "simpo_gamma", "rpo_alpha", "kto_desirable_weight"):
            draft.take(key)
        draft.take("kto_undesirable_weight")
    convert_steps(draft, "num_epochs")
    return draft


def read_first_path(draft: Draft) -> str | None:
    entries = draft.pop_entries("datasets")
    for number, entry in enumerate(entries):
        for key, value in entry.items():
            if number or key != "path":
                draft.leave(f"datasets.{number}.{key}", "a task reads one file, with a column prompt", value)
    return entries[0].get("path") if entries else None


def convert_axolotl_rows(draft: Draft) -> None:
    entries = draft.pop_entries("datasets")
    sources = [
        source for k, entry in enumerate(entries) for source in convert_axolotl_source(draft, entry, f"datasets.{k}")
    ]
    if sources:
        put_sources(draft, sources, "datasets")
    share, tests = draft.read_number("val_set_size", 0), draft.pop_entries("test_datasets")
    path = tests[0].get("path") if tests and len(tests) == 1 else None
    put_heldout(draft, path, tests, share, ("test_datasets", "val_set_size"), "val_set_size")
    draft.take("sequence_len")
    cut = draft.pop("excess_length_strategy") == "truncate"
    draft.put("overlong", "cut_right" if cut else "drop", "what axolotl does with rows above sequence_len")
    if draft.pop("train_on_inputs"):
        draft.leave("train_on_inputs", "questions are never trained; answers are", True)


def convert_axolotl_source(draft: Draft, entry: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """A file of `data_files` is a source of its own."""
    kind, files = entry.pop("type", None), entry.pop("data_files", None)
    renamed: dict[str, str] = {}
    if isinstance(kind, dict):
        renamed = {kind.pop(key): name for key, name in COLUMNS.items() if kind.get(key)}
        for key, value in kind.items():
            draft.leave(f"{where}.type.{key}", PROMPTS, value)
    elif kind is not None and kind not in ("alpaca", "chat_template", "completion", "chat_template.default"):
        draft.leave(f"{where}.type", f"the form is found by what is in the rows; {PROMPTS}", kind)
    tags = entry.pop("message_property_mappings", None) or {}
    tags |= {tag: value for tag in TAGS if (value := entry.pop(f"message_field_{tag}", None))}
    for tag, name in tags.items():
        if name not in TAGS.get(tag, (tag,)):
            draft.leave(
                f"{where}.message_property_mappings.{tag}", "messages have role and content, or from and value", name
            )
    roles = {
        old: new
        for new, olds in (entry.pop("roles", None) or {}).items()
        for old in olds
        if old not in {new} | SPEAKERS
    }
    messages = entry.pop("field_messages", None)
    renamed |= {messages: "messages"} if messages not in (None, "messages", "conversations", "conversation") else {}
    for key in ("field_chosen", "field_rejected"):
        name = entry.pop(key, None)
        renamed |= {name: key.removeprefix("field_")} if name not in (None, key.removeprefix("field_")) else {}
    if entry.get("roles_to_train") == ["assistant"]:
        entry.pop("roles_to_train")
    names = {old: new for old, new in renamed.items() if old != new}
    maps: list[Any] = [{"name": "rename", "columns": names}] if names else []
    maps += [{"name": "rename_roles", "roles": roles}] if roles else []
    options = {"form": "text"} if kind == "completion" else {}
    paths = [files] if isinstance(files, str) else files or [entry.get("path")]
    return [convert_source(draft, {**entry, "path": path}, where, maps, **options) for path in paths]

"""What the configs of all libraries say in the same or nearly the same words: optimiser, adapter, precision, steps."""

from __future__ import annotations

import math
from typing import Any

from aurify.conversion.draft import Draft, read_rows_here

AS_IT_IS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("cosine_min_lr_ratio", "save_total_limit", "seed", "run_name", "chat_template_kwargs"),
    *("resize_vocab", "wandb_name"),
)
SCHEDULES = {
    "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "cosine_warmup_with_min_lr": "cosine",
    **{name: name for name in ("constant", "linear", "cosine")},
}  # fmt: skip
DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "auto": "auto"}
MODULES = "lora.targets"
LORA_KEYS = (
    *("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_modules"),
    *("lora_target_linear", "use_rslora", "peft_use_rslora"),
)


def convert_common(draft: Draft, *, optimizer: str, schedule: str, rank: str, adapter: bool) -> None:
    """optimizer, schedule, rank: the library's words for them. adapter: LoRA is trained, not all weights."""
    for key in AS_IT_IS:
        draft.take(key)
    convert_warmup(draft)
    convert_schedule(draft, schedule)
    convert_optimizer_kind(draft, optimizer)
    convert_precision(draft, adapter)
    convert_adapter(draft, rank, adapter)
    convert_saving(draft)
    for key in ("gradient_checkpointing", "activation_checkpointing"):  # the second in transformers 5
        if (checkpointing := draft.pop(key)) is not None:
            value = "offload" if str(checkpointing).startswith("offload") else bool(checkpointing)
            draft.put("engine.checkpointing", value, f"{key}; auto is faster where memory allows it")
    if draft.pop("activation_offloading"):
        draft.put("engine.checkpointing", "offload", "activation_offloading")


def convert_warmup(draft: Draft) -> None:
    steps = draft.read_number("warmup_steps", 0)
    if 0 < steps < 1:  # transformers 5 means a share then
        draft.put("optim.warmup_ratio", steps, "warmup_steps")
    elif steps:
        draft.put("optim.warmup_steps", int(steps), "warmup_steps")
        draft.leave("warmup_ratio", "warmup_steps counts where both are given")
    draft.take("warmup_ratio")


def convert_schedule(draft: Draft, key: str) -> None:
    origin = key if key in draft.given else f"{key}, the default of {draft.library}"
    name, options = draft.pop(key), draft.pop("lr_scheduler_kwargs")
    if name is not None:
        known = SCHEDULES.get(str(name))
        taken = known or ("cosine" if "cosine" in str(name) else "linear")
        draft.put("optim.schedule", taken, origin if known else f"{origin}: {name}")
        if known is None:
            draft.leave(key, f"schedules here are constant, linear and cosine; {taken} is taken", name)
    if isinstance(options, dict) and set(options) == {"min_lr_rate"}:
        draft.put("optim.min_lr_ratio", options["min_lr_rate"], "lr_scheduler_kwargs.min_lr_rate")
    elif options:
        draft.leave("lr_scheduler_kwargs", "of these there is optim.min_lr_ratio", options)


def convert_optimizer_kind(draft: Draft, key: str) -> None:
    """Where `key` names no AdamW, AdamW is taken, and that is said."""
    name = draft.pop(key)
    if name is None:
        return
    text = str(name).lower()
    kind = ("paged_" if text.startswith("paged") else "") + "adamw" + ("_8bit" if "8bit" in text else "")
    if "adamw" not in text or "4bit" in text or "galore" in text or "schedule_free" in text:
        draft.leave(key, "the optimiser here is AdamW, which is taken", name)
    elif kind != "adamw":
        draft.put("optim.kind", kind, f"{key}: {name}")


def convert_precision(draft: Draft, adapter: bool) -> None:
    """dtype and bits of the base."""
    given = {key: draft.pop(key) for key in ("bf16", "pure_bf16", "bfloat16", "torch_dtype", "dtype")}
    key = next((key for key, value in given.items() if value), None)
    if key is not None:
        name = DTYPES.get(str(given[key]).removeprefix("torch."), "bfloat16" if given[key] is True else None)
        if name is None:
            draft.leave(key, "model.dtype is auto, bfloat16 or float32; auto is taken", given[key])
        elif name != "auto":
            draft.put("model.dtype", name, key)
    four, eight, bits = (draft.pop(key) for key in ("load_in_4bit", "load_in_8bit", "quantization_bit"))
    kind = "nf4" if four or str(bits) == "4" else "int8" if eight or str(bits) == "8" else None
    origin = "quantization_bit" if bits else "load_in_4bit" if four else "load_in_8bit"
    if bits and kind is None:
        draft.leave("quantization_bit", "a base here has 4 bits (nf4) or 8 (int8)", bits)
    elif kind is not None and not adapter:
        draft.leave(origin, "a quantised base needs an adapter, and none is trained", bits or True)
    elif kind is not None:
        draft.put("model.quantize", kind, origin)
    for key in ("bnb_4bit_quant_type", "quantization_type"):
        if (value := draft.pop(key)) not in (None, "nf4"):
            draft.leave(key, "4 bits are nf4 here", value)


def convert_adapter(draft: Draft, rank: str, adapter: bool) -> None:
    """Rank-stabilised LoRA becomes plain LoRA of the same scale."""
    if not adapter:
        for key in LORA_KEYS:
            draft.leave(key, "no adapter is trained")
        return
    r = int(draft.read_number(rank, 16))
    origin = rank if rank in draft.given else ""
    draft.put("lora.rank", r, origin or rank)
    stabilised = bool(draft.pop("use_rslora")) | bool(draft.pop("peft_use_rslora"))
    alpha = draft.read_number("lora_alpha", 2 * r)
    note = ", times the root of the rank: use_rslora" if stabilised else ""
    draft.put("lora.alpha", alpha * math.sqrt(r) if stabilised else alpha, f"lora_alpha{note}")
    draft.take("lora_dropout")
    linear = draft.pop("lora_target_linear")
    for key in ("lora_target", "lora_target_modules"):
        value = draft.pop(key)
        if value is None or (linear and MODULES in draft.comments):
            continue
        names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
        every = linear or set(names) & {"all", "all-linear", "all_linear"}
        draft.put(MODULES, "all-linear" if every else names, key)
    if linear and MODULES not in draft.comments:
        draft.put(MODULES, "all-linear", "lora_target_linear")


def convert_saving(draft: Draft) -> None:
    steps = draft.pop("save_steps")
    if isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1:
        draft.put("checkpoint_every", steps, "save_steps")
    elif steps is not None:
        draft.leave("save_steps", "checkpoint_every counts steps", steps)


def convert_batch(draft: Draft, device: str) -> int:
    """Rows of one optimiser step, on one device. device: the key of those of one backward."""
    rows = int(draft.read_number(device, 1) * draft.read_number("gradient_accumulation_steps", 1))
    if not draft.online:
        draft.put("batch_size", rows, f"{device} x gradient_accumulation_steps, on one device")
    return rows


def convert_steps(draft: Draft, epochs: str) -> None:
    """After the data: a stage that samples has no epochs, so its steps follow from the rows where they are here."""
    steps, passes = draft.pop("max_steps"), draft.read_number(epochs, 1)
    if steps is not None and int(steps) > 0:
        draft.put("steps", int(steps), "max_steps")
        return
    if not draft.online:
        draft.put("epochs", passes, epochs)
        return
    rows = len(read_rows_here(draft.top.get("task", {}).get("path")))
    if not rows:
        draft.leave(epochs, "a stage that samples counts steps, rows / prompts_per_step each epoch: set steps", passes)
    else:
        each = math.ceil(rows / draft.stage["prompts_per_step"])
        draft.put("steps", max(1, round(passes * each)), f"{epochs} x {rows} rows / prompts_per_step")


def convert_source(
    draft: Draft, entry: dict[str, Any], where: str, maps: list[Any] | None = None, **options: Any
) -> dict[str, Any]:
    """A source of rows as `data` or a part of `data.mix` has it. entry: path, split, name; the rest is left."""
    entry = dict(entry)
    known = {"path": entry.pop("path", None), "split": entry.pop("split", None), "subset": entry.pop("name", None)}
    source = {key: value for key, value in (known | options).items() if value is not None}
    if maps:
        source["maps"] = maps
    for key, value in entry.items():
        draft.leave(f"{where}.{key}", "columns and roles are found by what is in the rows; see data.maps", value)
    return source


def put_heldout(draft: Draft, path: Any, tests: Any, share: float, keys: tuple[str, str], told: str) -> None:
    """A file of held-out rows, or a share of all rows. tests: what `keys[0]` names; path: of it, if it is one file.
    told: what the share was there."""
    if path:
        draft.put("data.heldout_path", path, keys[0])
    elif tests:
        draft.leave(keys[0], "data.heldout_path is one file", tests)
    elif share < 1:
        draft.put("data.heldout_share", share, told)
    else:
        draft.leave(keys[1], "data.heldout_share is a share below 1", share)


def put_sources(draft: Draft, sources: list[dict[str, Any]], origin: str) -> None:
    """One source, or several that follow each other in the libraries and are mixed here, by their sizes if known."""
    if len(sources) == 1:
        for key, value in sources[0].items():
            draft.put(f"data.{key}", value, origin if key == "path" else f"of {origin}")
        return
    sizes = [len(read_rows_here(source.get("path"))) for source in sources]
    if all(sizes):
        sources = [{**source, "weight": size} for source, size in zip(sources, sizes, strict=True)]
    else:
        draft.notes.append(f"data.mix: {draft.library} joins all rows; here each source gives as many unless weighted")
    draft.put("data.mix", sources, origin)

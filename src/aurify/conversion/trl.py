"""Configs of TRL: the YAML of `trl sft --config`, or training arguments as JSON (names and defaults of TRL 1.16, and
those of older versions)."""

from __future__ import annotations

from typing import Any

from aurify.conversion.common import convert_batch, convert_common, convert_source, convert_steps, put_sources
from aurify.conversion.draft import ONLINE, Draft, read_rows_here
from aurify.errors import UserError
from aurify.rows.columns import GOLD

SIGNS = {  # keys by which a trainer is known, the most particular one first
    "grpo": ("num_generations", "max_completion_length", "reward_funcs", "scale_rewards", "epsilon", "num_iterations"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward_model": ("center_rewards_coefficient",),
    "dpo": ("beta", "label_smoothing", "precompute_ref_log_probs", "rpo_alpha", "ld_alpha", "f_divergence_type"),
}
COMMON = {
    "lr_scheduler_type": "linear", "per_device_train_batch_size": 8, "num_train_epochs": 3.0,
    "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
}  # fmt: skip
LEARNING_RATE = {"sft": 2e-5, "reward_model": 1e-4}  # all others: 1e-6
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
    "grpo": {"beta": 0.0, "epsilon": 0.2, "num_generations": 8, "max_completion_length": 512},
    "rloo": {"beta": 0.05, "num_generations": 2, "max_completion_length": 512},
}
PAIR_LOSSES = {"exo_pair": "exo", "nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo"}
DIVERGENCES = {"js_divergence": "js", "alpha_divergence": "alpha"}
AGGREGATORS = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
RELATIVES = {  # losses that are methods of their own here, with their options
    "cispo": {"epsilon_high": "algorithm.max_ratio"},
    "sapo": {"sapo_temperature_pos": "algorithm.tau_positive", "sapo_temperature_neg": "algorithm.tau_negative"},
    "vespo": {
        "vespo_k_pos": "algorithm.k_positive", "vespo_lambda_pos": "algorithm.lambda_positive",
        "vespo_k_neg": "algorithm.k_negative", "vespo_lambda_neg": "algorithm.lambda_negative",
    },
}  # fmt: skip
REWARDS: dict[str, Any] = {
    "accuracy_reward": "math",
    "reasoning_accuracy_reward": "math",
    "think_format_reward": {"name": "format", "pattern": r"<think>(?!.*<think>).*?</think>.*"},
    "get_soft_overlong_punishment": {"name": "length", "max_tokens": 1024, "over": 256},
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p")
CHAT_LOSS = "a stage with chats trains the answers alone"


def guess_trl_method(given: dict[str, Any]) -> str:
    """TRL's configs do not name the trainer: the command does."""
    return next((method for method, keys in SIGNS.items() if any(key in given for key in keys)), "sft")


def list_trl_defaults(method: str) -> dict[str, Any]:
    own = OWN.get(method, {}) if method in ONLINE else {"max_length": 1024} | OWN.get(method, {})
    return COMMON | {"learning_rate": LEARNING_RATE.get(method, 1e-6)} | own


def convert_trl(given: dict[str, Any], method: str) -> Draft:
    adapter = bool(given.get("use_peft"))
    draft = Draft("TRL", method, given, list_trl_defaults(method))
    draft.leave("env", "set the environment where `aurify train` is started")
    for key in ("model_name_or_path", "model"):
        draft.take(key, "model.name")
    draft.pop("use_peft")
    convert_common(draft, optimizer="optim", schedule="lr_scheduler_type", rank="lora_r", adapter=adapter)
    if adapter and "targets" not in draft.top["lora"]:
        draft.notes.append("lora.targets: peft adapts few layers (q_proj and v_proj of most models), here all linear")
    if draft.online:
        convert_trl_online(draft)
    else:
        convert_batch(draft, "per_device_train_batch_size")
        convert_trl_rows(draft)
        if method in ("dpo", "kto", "reward_model"):
            convert_trl_preferences(draft)
    convert_steps(draft, "num_train_epochs")
    return draft


def convert_trl_rows(draft: Draft) -> None:
    entry = {"path": draft.pop("dataset_name"), "split": draft.pop("dataset_train_split")}
    entry["name"] = draft.pop("dataset_config")
    sources = [convert_source(draft, entry, "dataset")] if entry["path"] else []
    if mixed := draft.pop_entries("datasets"):
        sources = [convert_source(draft, part, f"datasets.{k}") for k, part in enumerate(mixed)]
    if sources:
        put_sources(draft, sources, "dataset_name" if entry["path"] and not mixed else "datasets")
    measured = draft.pop("eval_strategy", draft.pop("evaluation_strategy", "no")) not in ("no", False)
    split = draft.pop("dataset_test_split", "test")
    if measured and entry["path"] and split == "test":
        draft.put("data.heldout_path", entry["path"], "eval_strategy: the split test of dataset_name")
    elif measured:
        draft.leave("eval_strategy", "set data.heldout_path, or data.heldout_share for a part of the rows", split)
    else:
        draft.put("data.heldout_share", 0.0, "TRL trains on all rows; 0.1 measures on a tenth of them")
    for key in ("max_seq_length", "max_length"):
        if key in draft.given or (key == "max_length" and "max_length" not in draft.stage):
            draft.take(key, "max_length")
    draft.pop("max_length")
    mode = draft.pop("truncation_mode", "keep_start")
    cut = "cut_left" if mode == "keep_end" else "cut_right"
    draft.put("overlong", cut, f"truncation_mode: {mode}; TRL cuts rows above max_length")
    if draft.method == "sft":
        draft.take("loss_type", "algorithm.loss_type", str) if draft.given.get("loss_type") in ("nll", "dft") else None
        if not draft.pop("assistant_only_loss") and not draft.pop("completion_only_loss"):
            draft.notes.append(
                f"train_on: TRL trains every token of a chat without assistant_only_loss; here {CHAT_LOSS}"
            )
        if draft.pop("completion_only_loss") is False:
            draft.leave("completion_only_loss", CHAT_LOSS, False)


def convert_trl_preferences(draft: Draft) -> None:
    if draft.method == "reward_model":
        draft.take("center_rewards_coefficient")
        return
    draft.take("beta")
    if draft.method == "kto":
        for key in ("loss_type", "desirable_weight", "undesirable_weight"):
            draft.take(key)
        return
    stated, losses = "loss_type" in draft.given, draft.pop("loss_type", "sigmoid")
    losses, weights = [losses] if isinstance(losses, str) else list(losses), draft.pop("loss_weights")
    if len(losses) == 2 and losses[1] == "sft" and (weights is None or float(weights[0]) == 1):
        draft.put("algorithm.sft_coef", float(weights[1]) if weights else 1.0, "loss_type: sft beside it")
    elif len(losses) > 1:
        draft.leave("loss_type", "one loss is taken, the first; sft beside it would be algorithm.sft_coef", losses)
        draft.leave("loss_weights", "of several losses", weights)
    if losses[0].startswith("aot"):
        draft.method = "aot"
    elif stated or losses[0] != "sigmoid":
        draft.put("algorithm.loss_type", PAIR_LOSSES.get(losses[0], losses[0]), "loss_type")
    for key in ("label_smoothing", "ld_alpha", "rpo_alpha", "f_alpha_divergence_coef"):
        draft.take(key)
    draft.take("f_divergence_type", change=lambda name: DIVERGENCES.get(str(name).rpartition(".")[2].lower(), name))


def convert_trl_online(draft: Draft) -> None:
    """TRL counts completions, Aurify questions with a group of completions each."""
    device = draft.read_number("per_device_train_batch_size", 8)
    update = int(device * draft.read_number("gradient_accumulation_steps", 1))  # completions of one optimiser step
    each = "per_device_train_batch_size x gradient_accumulation_steps"
    drawn, steps = draft.pop("generation_batch_size"), draft.pop("steps_per_generation")
    completions = int(drawn or device * (steps or 0)) or update  # of one round of sampling
    origin = (
        "generation_batch_size" if drawn else "per_device_train_batch_size x steps_per_generation" if steps else each
    )
    group = int(draft.take("num_generations"))
    draft.put("prompts_per_step", max(1, completions // group), f"{origin} / num_generations, on one device")
    if completions > update:
        draft.put("num_minibatches", completions // update, f"{origin} / ({each})")
    elif origin != each:
        draft.notes.append(f"prompts_per_step: {each} is {update}, and a round has {completions} completions")
    if completions % group:
        draft.notes.append(f"prompts_per_step: {completions} completions are no whole groups of {group}")
    draft.take("num_iterations")
    draft.take("max_completion_length")
    for key in SAMPLING:
        draft.take(key)
    draft.take("mask_truncated_completions", "truncated", lambda masked: "mask" if masked else "keep")
    convert_trl_task(draft)
    convert_trl_grpo(draft)


def convert_trl_grpo(draft: Draft) -> None:
    """The method's own options. loss_type and importance_sampling_level may say another method."""
    loss, level = draft.pop("loss_type", "dapo"), draft.pop("importance_sampling_level", "token")
    beta = draft.read_number("beta", 0)
    if draft.method == "rloo":
        draft.put("algorithm.reward_kl_coef", beta, "beta")
        return
    draft.put("algorithm.kl_coef", beta, "beta")
    draft.method = "gspo" if level == "sequence" else loss if loss in RELATIVES else draft.method
    if draft.method in RELATIVES:
        draft.leave("epsilon", f"{loss} clips no ratio at both sides")
        for key, target in RELATIVES[loss].items():
            draft.take(key, target)
    else:
        clip = draft.read_number("epsilon", 0.2)
        for side in ("low", "high"):
            draft.put(f"algorithm.clip_{side}", clip, "epsilon")
        for key in ("epsilon_high", "delta"):
            draft.take(key)
    for key in ("entropy_coef", "top_entropy_quantile"):
        draft.take(key)
    scale = {True: "group", False: "none", "True": "group", "False": "none"}
    draft.take("scale_rewards", change=lambda value: scale.get(value, value))
    if loss in AGGREGATORS:
        draft.put("algorithm.aggregator", AGGREGATORS[loss], f"loss_type: {loss}")
        if loss == "dr_grpo":
            length = draft.stage["sampling"]["max_tokens"]
            draft.put("algorithm.constant_length", length, "max_completion_length, as loss_type: dr_grpo divides by it")
    elif loss not in RELATIVES:
        draft.leave("loss_type", f"losses here: {', '.join([*AGGREGATORS, *RELATIVES])}", loss)


def convert_trl_task(draft: Draft) -> None:
    path, functions = draft.pop("dataset_name"), draft.pop("reward_funcs") or []
    functions = [functions] if isinstance(functions, str) else functions
    if path == "openai/gsm8k":
        draft.put("task.name", "gsm8k", "dataset_name: openai/gsm8k, with both of its splits")
        for key in ("dataset_config", "dataset_train_split"):
            draft.pop(key)
    elif path is not None:
        draft.put("task.name", "jsonl", "questions from a file")
        draft.put("task.path", path, "dataset_name")
        if (rows := read_rows_here(path)) and not set(GOLD) & set(rows[0]):
            column = "solution" if "solution" in rows[0] else None
            draft.put("task.answer_column", column, "the rows' own" if column else "the rows have none")
        draft.notes.append("task: a tenth of the questions is held out to measure on; task.num_heldout says how many")
    weights = draft.pop("reward_weights") or [1.0] * len(functions)
    if len(weights) != len(functions):
        raise UserError(f"reward_weights: {len(weights)} numbers for {len(functions)} reward_funcs")
    rewards = [convert_reward(str(name), float(weight)) for name, weight in zip(functions, weights, strict=True)]
    if rewards:
        draft.put("task.reward", rewards, "reward_funcs")
    draft.take("reward_model_name_or_path")


def convert_reward(name: str, weight: float) -> Any:
    """A function of TRL's by what judges the same here; one of a person's own by its module, which works unchanged."""
    module, _, function = name.rpartition(".")
    known = REWARDS.get(name, f"{module}:{function}" if module else name)
    if weight == 1:
        return known
    return {**known, "weight": weight} if isinstance(known, dict) else {"name": known, "weight": weight}

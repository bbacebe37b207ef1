"""Words that people bring from TRL, transformers, peft, LLaMA-Factory and axolotl, and what they are called here: one
table for the errors of a recipe, for `aurify help` and for `aurify convert`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

NAME = "stages.NAME."
ONLINE, OFFLINE = "prompts_per_step", "batch_size"  # keys by which a stage is known
OF_THE_RECIPE = ("name", "seed", "evaluation")  # stand at the top alone


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key here, counted from the stage. rollouts: the one where a stage learns from its own answers, if it differs;
    "": there is none."""

    target: str
    note: str = ""
    rollouts: str | None = None

    @property
    def targets(self) -> list[str]:
        return [target for target in (self.target, self.rollouts) if target]

    def choose(self, online: bool) -> str:
        """online: the stage learns from its own answers."""
        return self.rollouts if online and self.rollouts is not None else self.target

    def describe(self, prefix: str = "", online: bool | None = None) -> str:
        """online: None where nobody knows."""
        targets = self.targets if online is None else [target for target in [self.choose(online)] if target]
        keys = [key if key.partition(".")[0] in OF_THE_RECIPE else prefix + key for key in targets]
        if len(keys) == 2:
            keys = [keys[0], f"{keys[1]} where the model's own answers are trained on"]
        return ", ".join(filter(None, (" or ".join(keys), self.note))) if keys else ""


BATCH = ForeignKey(
    "batch_size", "the rows of one optimiser step; how many fit into memory is found out", "prompts_per_step"
)
RANK, ALPHA, TARGETS = ForeignKey("lora.rank"), ForeignKey("lora.alpha"), ForeignKey("lora.targets")
LR, SCHEDULE = ForeignKey("optim.lr"), ForeignKey("optim.schedule", "constant, linear or cosine")
LENGTH = ForeignKey("max_length", "the tokens of a whole row", "sampler.max_context")
ANSWER = ForeignKey("max_length", "", "sampling.max_tokens")
GROUP = ForeignKey("", "", "completions_per_prompt")
MODEL, QUANTIZE = ForeignKey("model.name"), ForeignKey("model.quantize", "nf4 or int8")
DTYPE = ForeignKey("model.dtype", "auto, bfloat16 or float32")
ADAPTER = ForeignKey("model.name", "the adapter's folder, which knows its base")
LORA = ForeignKey("lora", "such as {rank: 16}")
PATH, MIX = ForeignKey("data.path", "", "task.path"), ForeignKey("data.mix", "", "task")
ROWS = ForeignKey("data.max_rows", "", "")
HELDOUT, HELDOUT_FILE = (
    ForeignKey("data.heldout_share", "", "task.num_heldout"),
    ForeignKey("data.heldout_path", "", "task.heldout_path"),
)
TRAINED = ForeignKey("train_on", "assistant, last or marked", "")
BETA = ForeignKey("algorithm.beta", "", "algorithm.kl_coef")
SMOOTHING, SFT_COEF = ForeignKey("algorithm.label_smoothing", "", ""), ForeignKey("algorithm.sft_coef", "", "")
DESIRABLE = ForeignKey("algorithm.desirable_weight", "", "")
UNDESIRABLE = ForeignKey("algorithm.undesirable_weight", "", "")
REWARD = ForeignKey("task.reward", "a name or a list of [name, weight]")
RECOMPUTE = ForeignKey("engine.checkpointing", "auto, true, false or offload")
SERVER = ForeignKey("sampler.kind", "vllm_server or vllm_colocated; docs/vllm.md")

KEYS: dict[str, ForeignKey] = {
    # the model, its base in fewer bits, its adapter
    **dict.fromkeys(("model_name_or_path", "base_model", "model_id", "pretrained_model_name_or_path"), MODEL),
    **dict.fromkeys(("torch_dtype", "bf16", "bfloat16", "pure_bf16"), DTYPE),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_config", "quantization_bit"), QUANTIZE),
    **dict.fromkeys(("bnb_4bit_quant_type", "quantization_type"), QUANTIZE),
    **dict.fromkeys(("adapter_name_or_path", "lora_model_dir"), ADAPTER),
    **dict.fromkeys(("use_peft", "peft_config", "adapter", "finetuning_type"), LORA),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), RANK),
    "lora_alpha": ALPHA,
    "lora_dropout": ForeignKey("lora.dropout"),
    **dict.fromkeys(("lora_target", "target_modules", "lora_target_modules", "lora_target_linear"), TARGETS),
    "resize_vocab": ForeignKey("model.resize_embeddings"),
    "device_map": ForeignKey("model.device", "auto, cpu or cuda"),
    "chat_template_kwargs": ForeignKey("template_options"),
    # rows
    **dict.fromkeys(("dataset_name", "dataset", "dataset_path", "data_path", "train_file", "data_files"), PATH),
    **dict.fromkeys(("datasets", "dataset_mixer"), MIX),
    **dict.fromkeys(("dataset_config", "dataset_config_name"), ForeignKey("data.subset", "", "")),
    **dict.fromkeys(("dataset_train_split", "dataset_split"), ForeignKey("data.split", "", "")),
    **dict.fromkeys(("max_samples", "max_train_samples"), ROWS),
    **dict.fromkeys(("val_size", "val_set_size", "test_size"), HELDOUT),
    **dict.fromkeys(("eval_dataset", "test_datasets", "validation_file"), HELDOUT_FILE),
    **dict.fromkeys(("mask_history", "train_on_inputs", "train_on_prompt", "assistant_only_loss"), TRAINED),
    **dict.fromkeys(("completion_only_loss", "roles_to_train"), TRAINED),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "model_max_length"), LENGTH),
    "max_prompt_length": LENGTH,
    **dict.fromkeys(
        ("truncation_mode", "excess_length_strategy"), ForeignKey("overlong", "error, drop, cut_left or cut_right", "")
    ),
    # steps
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size", "train_batch_size"), BATCH),
    "gradient_accumulation_steps": BATCH,
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs"), ForeignKey("epochs", "", "steps")),
    **dict.fromkeys(("max_steps", "num_train_steps"), ForeignKey("steps")),
    **dict.fromkeys(("learning_rate", "lr"), LR),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), SCHEDULE),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps"), ForeignKey("optim.warmup_steps")),
    "warmup_ratio": ForeignKey("optim.warmup_ratio"),
    **dict.fromkeys(("min_lr_rate", "cosine_min_lr_ratio"), ForeignKey("optim.min_lr_ratio")),
    "weight_decay": ForeignKey("optim.weight_decay"),
    "adam_beta1": ForeignKey("optim.beta1"),
    "adam_beta2": ForeignKey("optim.beta2"),
    "adam_epsilon": ForeignKey("optim.eps"),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping"), ForeignKey("optim.max_grad_norm")),
    "optimizer": ForeignKey("optim.kind", "adamw, adamw_8bit, paged_adamw or paged_adamw_8bit"),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing", "activation_offloading"), RECOMPUTE),
    **dict.fromkeys(("activation_checkpointing", "disable_gradient_checkpointing"), RECOMPUTE),
    "save_steps": ForeignKey("checkpoint_every"),
    "save_total_limit": ForeignKey("keep_checkpoints"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), ForeignKey("sampler.max_batch")),
    "eval_max_new_tokens": ForeignKey("evaluation.sampling.max_tokens"),
    **dict.fromkeys(("run_name", "wandb_name", "wandb_run_name", "swanlab_run_name"), ForeignKey("name")),
    "data_seed": ForeignKey("seed"),
    # preferences
    **dict.fromkeys(("beta", "pref_beta", "rl_beta"), BETA),
    "pref_loss": ForeignKey("algorithm.loss_type", "", ""),
    "loss_type": ForeignKey("algorithm.loss_type", "", "algorithm.aggregator"),
    **dict.fromkeys(("dpo_label_smoothing", "label_smoothing"), SMOOTHING),
    **dict.fromkeys(("rpo_alpha", "pref_ftx", "cpo_alpha"), SFT_COEF),
    **dict.fromkeys(("ld_alpha", "dpo_length_alpha"), ForeignKey("algorithm.length_alpha", "", "")),
    "orpo_alpha": ForeignKey("algorithm.beta", "of orpo", ""),
    "simpo_gamma": ForeignKey("algorithm.gamma", "of simpo", ""),
    "f_divergence_type": ForeignKey("algorithm.divergence", "", ""),
    "f_alpha_divergence_coef": ForeignKey("algorithm.divergence_alpha", "", ""),
    **dict.fromkeys(("kto_desirable_weight", "kto_chosen_weight", "desirable_weight"), DESIRABLE),
    **dict.fromkeys(("kto_undesirable_weight", "kto_rejected_weight", "undesirable_weight"), UNDESIRABLE),
    "center_rewards_coefficient": ForeignKey("algorithm.centering", "of reward_model", ""),
    # answers of the model itself
    **dict.fromkeys(("num_generations", "num_return_sequences", "rollout_n"), GROUP),
    **dict.fromkeys(("max_completion_length", "max_new_tokens", "max_response_length"), ANSWER),
    **dict.fromkeys(("num_iterations", "ppo_epochs"), ForeignKey("", "", "num_epochs")),
    "steps_per_generation": ForeignKey("", "", "num_minibatches"),
    "generation_batch_size": ForeignKey("", "times completions_per_prompt", "prompts_per_step"),
    **{name: ForeignKey("", "", f"sampling.{name}") for name in ("temperature", "top_p", "top_k", "min_p")},
    "stop_strings": ForeignKey("", "", "sampling.stop"),
    "max_turns": ForeignKey("limits.turns"),
    "epsilon": ForeignKey("", "and algorithm.clip_high", "algorithm.clip_low"),
    "epsilon_high": ForeignKey("", "", "algorithm.clip_high"),
    "delta": ForeignKey("", "", "algorithm.dual_clip"),
    "scale_rewards": ForeignKey("", "group, batch or none", "algorithm.scale"),
    "entropy_coef": ForeignKey("", "", "algorithm.entropy_coef"),
    "top_entropy_quantile": ForeignKey("", "", "algorithm.top_entropy"),
    "importance_sampling_level": ForeignKey("", "gspo, where it is that of sequences", "method"),
    "mask_truncated_completions": ForeignKey("", "mask", "truncated"),
    "multi_objective_aggregation": ForeignKey("", "", "combine_rewards"),
    **dict.fromkeys(("reward_funcs", "reward_weights", "rewards"), REWARD),
    "reward": ForeignKey("task.reward", "where it is a reward; `reward: {model: ...}` of a stage is a reward model"),
    **dict.fromkeys(("reward_model_name_or_path", "reward_model_path"), ForeignKey("", "", "reward.model")),
    "teacher_model_name_or_path": ForeignKey("", "", "teacher"),
    **dict.fromkeys(("use_vllm", "vllm_mode", "vllm_server_base_url", "vllm_server_host"), SERVER),
}
LOGS = "every step is in metrics.jsonl, TensorBoard files and report.html of the run"
PACKED = "rows are always packed, and never see each other"
KERNELS = "the fastest attention and kernels that work here are chosen, and named in run_info.json"
LOADING = "rows are read and tokenised once, before the first step"
MEASURED = "each stage is measured before and after it; `evaluation:` at the top says on how many tasks"
PUSH = "`aurify push` sends a result to a hub"
TEMPLATE = "the chat template of the model's own tokenizer is used; options of it are template_options"
RANKS = "it belongs to training on several devices, which no key of a recipe describes"
ALWAYS = "that is how it always works here"
WITHOUT: dict[str, str] = {  # what no key here corresponds to, and why
    **dict.fromkeys(("logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "report_to"), LOGS),
    **dict.fromkeys(("wandb_project", "wandb_entity", "wandb_watch", "wandb_log_model", "use_tensorboard"), LOGS),
    **dict.fromkeys(("plot_loss", "log_completions", "num_completions_to_print", "use_wandb", "use_swanlab"), LOGS),
    **dict.fromkeys(("output_dir", "overwrite_output_dir"), "the option --runs of `aurify train` says where runs go"),
    "resume_from_checkpoint": "`aurify train --resume RUN` goes on with a run",
    **dict.fromkeys(("packing", "neat_packing", "sample_packing", "eval_sample_packing", "eval_packing"), PACKED),
    **dict.fromkeys(("pad_to_sequence_len", "padding_free", "group_by_length", "packing_strategy"), PACKED),
    **dict.fromkeys(("batch_flattening", "pad_to_multiple_of"), PACKED),
    **dict.fromkeys(("attn_implementation", "flash_attention", "flash_attn", "sdp_attention"), KERNELS),
    **dict.fromkeys(("xformers_attention", "flex_attention", "use_liger_kernel", "enable_liger_kernel"), KERNELS),
    **dict.fromkeys(("use_unsloth", "torch_compile", "tf32", "use_cache"), KERNELS),
    **dict.fromkeys(("fp16", "float16"), "there is no fp16: model.dtype is bfloat16 or float32"),
    **dict.fromkeys(("preprocessing_num_workers", "dataset_num_proc", "dataloader_num_workers"), LOADING),
    **dict.fromkeys(("overwrite_cache", "dataset_prepared_path", "dataset_processes", "tokenized_path"), LOADING),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_prefetch_factor", "remove_unused_columns"), LOADING),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps", "evals_per_epoch", "do_eval"), MEASURED),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "eval_table_size"), MEASURED),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), PUSH),
    **dict.fromkeys(("template", "chat_template", "chat_template_path", "chat_template_jinja"), TEMPLATE),
    "dataset_text_field": "a column is found by its content; data.maps renames columns",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "local_rank"), RANKS),
    **dict.fromkeys(("ddp_find_unused_parameters", "gradient_checkpointing_kwargs"), RANKS),
    **dict.fromkeys(("do_train", "save_only_model", "save_safetensors", "disable_dropout"), ALWAYS),
    "save_strategy": "checkpoint_every counts steps",
    "saves_per_epoch": "checkpoint_every counts steps",
    "trust_remote_code": "code that comes with a model is never run",
    "use_rslora": "the scale is alpha / rank: for rank-stabilised LoRA multiply lora.alpha by the root of the rank",
    "use_dora": "adapters with DoRA are read and trained on; new ones are plain LoRA",
    "lora_modules_to_save": "adapters that have whole weights are read and trained on; new ones are plain LoRA",
    "additional_target": "adapters that have whole weights are read and trained on; new ones are plain LoRA",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "model_type": "the model's own config.json says it",
    "tokenizer_type": "the model's own folder says it",
    "special_tokens": "the model's own tokenizer says it; rows are packed without padding",
}
METHODS = {
    "ppo": "grpo or rloo, which need no critic",
    "reinforce": "reinforce_pp or rloo",
    "rm": "reward_model",
    "ipo": "dpo with algorithm.loss_type: ipo",
}


def translate_key(name: str, where: str = "", known: Collection[str] = ()) -> str:
    """`; here that is ...` for a word of another library. where: the dotted key in which it stands; known: the keys
    that may stand there."""
    if name in WITHOUT:
        return f"; there is none here: {WITHOUT[name]}"
    if name not in KEYS:
        return f"; here that is {METHODS[name]}" if name in METHODS else ""
    key = KEYS[name]
    online = None if not known else True if ONLINE in known else False if OFFLINE in known else None
    if where.endswith("algorithm") and any(target.startswith("algorithm.") for target in key.targets):
        fitting = [target for target in key.targets if target.removeprefix("algorithm.") in known]
        return f"; here that is {fitting[0]}" if fitting else ""  # else the method has no such option
    at_the_top = "stages" in known and key.describe(online=online).partition(",")[0].split(".")[0] not in known
    if text := key.describe(NAME if at_the_top else "", online):
        return f"; here that is {text}"
    others = "answers of its own, such as method: grpo" if online is False else "data, such as method: sft"
    return f"; here that is {key.describe()}, of a stage with {others}"

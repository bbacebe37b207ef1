"""Configs as people have them become recipes that pass the check, and all that is not taken over is listed."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config
from aurify.conversion.convert import convert_config, read_foreign_config
from aurify.conversion.draft import Draft
from aurify.errors import UserError
from aurify.pipeline.recipe import build_recipe

TRL_SFT = """
# trl sft --config sft.yaml
model_name_or_path: random:tiny
dataset_name: chats.jsonl
use_peft: true
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
learning_rate: 2e-4
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
warmup_ratio: 0.03
lr_scheduler_type: cosine
assistant_only_loss: true
logging_steps: 25
eval_strategy: "no"
output_dir: data/tiny-sft
report_to: wandb
hub_token: hf_mine
bf16: true
seed: 7
"""
TRL_DPO = {
    "model_name_or_path": "random:tiny",
    "dataset_name": "pairs.jsonl",
    "learning_rate": 5e-7,
    "beta": 0.05,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.5],
    "max_length": 512,
    "max_prompt_length": 256,
    "optim": "adamw_torch",
    "load_in_4bit": True,
    "use_peft": True,
    "lora_r": 16,
    "use_rslora": True,
    "lora_target_modules": "all-linear",
    "save_steps": 50,
    "warmup_steps": 0.1,
    "resume_from_checkpoint": None,
}
TRL_GRPO = """
model_name_or_path: random:tiny
dataset_name: tasks.jsonl
reward_funcs: [accuracy_reward, think_format_reward, rewards.short]
reward_weights: [1.0, 0.2, 0.5]
num_generations: 4
max_completion_length: 32
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
num_train_epochs: 2
beta: 0.04
epsilon: 0.2
epsilon_high: 0.28
loss_type: dr_grpo
scale_rewards: false
temperature: 0.9
use_vllm: true
vllm_gpu_memory_utilization: 0.3
log_completions: true
"""
AXOLOTL_QLORA = """
base_model: random:tiny
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: alpaca.jsonl
    type: alpaca
  - path: chats.jsonl
    type: chat_template
    field_messages: messages
    message_property_mappings: {role: role, content: content}
    roles_to_train: [assistant]
    train_on_eos: turn
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/qlora-out
adapter: qlora
lora_model_dir:
sequence_len: 1024
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens: {pad_token: "<|end_of_text|>"}
"""
AXOLOTL_DPO = """
base_model: random:tiny
chat_template: llama3
rl: ipo
rl_beta: 0.2
datasets:
  - path: pairs.jsonl
    split: train
    type: {field_prompt: prompt, field_chosen: chosen, field_rejected: rejected, prompt_format: "{prompt}"}
val_set_size: 0.05
sequence_len: 512
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.0002
warmup_steps: 10
gradient_checkpointing: offload
"""
LLAMA_FACTORY_SFT = """
### model
model_name_or_path: random:tiny
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
quantization_bit: 4
### dataset
dataset: identity,talks
dataset_dir: .
template: llama3
cutoff_len: 2048
max_samples: 30
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/tiny/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.2
"""
LLAMA_FACTORY_DPO = """
model_name_or_path: random:tiny
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
pref_beta: 0.3
pref_loss: simpo
dataset: votes
dataset_dir: .
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
max_steps: 12
lr_scheduler_type: cosine_with_restarts
"""
INFO = {
    "identity": {"file_name": "own.jsonl", "columns": {"prompt": "ask", "response": "say"}},
    "talks": {
        "file_name": "chats.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "votes": {
        "file_name": "votes.jsonl",
        "ranking": True,
        "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"},
    },
}
ROWS: dict[str, Any] = {
    "chats": lambda k: {"messages": [{"role": "user", "content": f"{k}+1?"}, {"role": "assistant", "content": f"{k}"}]},
    "alpaca": lambda k: {"instruction": "Add one.", "input": f"{k}", "output": f"{k + 1}"},
    "own": lambda k: {"ask": f"{k}+2?", "say": f"{k + 2}"},
    "pairs": lambda k: {"prompt": f"{k}+1?", "chosen": f"{k + 1}", "rejected": f"{k}"},
    "votes": lambda k: {"ask": f"{k}+1?", "good": f"{k + 1}", "bad": f"{k}"},
    "tasks": lambda k: {"prompt": f"{k}+1?", "solution": f"{k + 1}"},
}
REWARDS = "def short(completions, **kwargs):\n    return [float(len(text) < 9) for text in completions]\n"
CONFIGS: dict[str, Any] = {
    "trl_sft.yaml": TRL_SFT,
    "trl_dpo.json": json.dumps(TRL_DPO),
    "trl_grpo.yaml": TRL_GRPO,
    "axolotl_qlora.yml": AXOLOTL_QLORA,
    "axolotl_dpo.yml": AXOLOTL_DPO,
    "llama_sft.yaml": LLAMA_FACTORY_SFT,
    "llama_dpo.yaml": LLAMA_FACTORY_DPO,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row(k)) + "\n" for k in range(40)))
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    (tmp_path / "rewards.py").write_text(REWARDS)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def invoke(*command: str):
    return CliRunner().invoke(app, list(command))


def convert(folder, name: str) -> Draft:
    return convert_config(folder / name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_recipe_passes_the_dry_run_and_every_key_is_taken_or_listed(folder, name):
    result = invoke("convert", name, "--to", "recipe.yaml")
    assert result.exit_code == 0, result.output
    dry = invoke("train", "recipe.yaml", "--dry-run")
    assert dry.exit_code == 0 and "The recipe is fine" in dry.stdout, dry.output
    text = (folder / "recipe.yaml").read_text()
    for key, value in read_foreign_config(folder / name).items():
        if value is not None and key != "datasets":
            assert key in text or key in KNOWN_FROM_OTHERS, f"{key} of {name} is dropped in silence"
            assert f"not taken over: {key}: " not in result.stderr or f"#   {key}: " in text
    assert "hf_mine" not in text + result.output, "no secret is repeated"
    assert invoke("convert", name, "--to", "recipe.yaml").exit_code == 2, "nothing is overwritten"


# keys whose meaning is in others, which are there
KNOWN_FROM_OTHERS = {"use_peft", "stage", "finetuning_type", "adapter", "lora_target_linear", "rl", "optim",
                     "lora_alpha", "assistant_only_loss", "dataset_dir", "load_in_8bit", "seed", "bf16", "pref_loss",
                     "reward_weights", "optimizer", "loss_weights", "eval_strategy"}  # fmt: skip


def test_trl_sft_with_lora(folder):
    draft = convert(folder, "trl_sft.yaml")
    recipe = build_recipe(draft.recipe())
    stage = recipe.stages["sft"]
    assert (recipe.seed, stage.model.dtype, stage.lora.rank, stage.lora.alpha) == (7, "bfloat16", 8, 16)
    assert stage.lora.targets == ["q_proj", "v_proj"] and stage.lora.dropout == 0.05, "TRL's default, not ours"
    assert (stage.batch_size, stage.epochs, stage.max_length, stage.overlong) == (16, 1, 1024, "cut_right")
    assert (stage.optim.lr, stage.optim.schedule, stage.optim.warmup_ratio) == (2e-4, "cosine", 0.03)
    assert stage.data.heldout_share == 0, "TRL trains on all rows"
    left = {left.key for left in draft.left}
    assert left == {"packing", "logging_steps", "output_dir", "report_to", "hub_token"}
    assert not [note for note in draft.notes if "train_on" in note]


def test_trl_dpo_with_a_quantised_base(folder):
    draft = convert(folder, "trl_dpo.json")
    stage = build_recipe(draft.recipe()).stages["dpo"]
    assert (stage.model.quantize, stage.lora.rank) == ("nf4", 16)
    assert stage.lora.alpha == 32 * 4, "rank-stabilised: alpha / root of the rank"
    assert stage.algorithm == {"beta": 0.05, "sft_coef": 0.5, "loss_type": "sigmoid"}
    assert (stage.max_length, stage.batch_size, stage.checkpoint_every) == (512, 8, 50)
    assert stage.optim.warmup_ratio == 0.1, "a share, in transformers 5"
    assert [left.key for left in draft.left] == ["max_prompt_length"]


def test_trl_grpo(folder):
    draft = convert(folder, "trl_grpo.yaml")
    stage = build_recipe(draft.recipe()).stages["grpo"]
    assert (stage.prompts_per_step, stage.completions_per_prompt, stage.sampling.max_tokens) == (4, 4, 32)
    assert stage.steps == 20, "two epochs of 40 rows, 4 a step"
    assert stage.sampling.temperature == 0.9
    assert stage.algorithm == {
        "kl_coef": 0.04, "clip_low": 0.2, "clip_high": 0.28, "scale": "none", "aggregator": "constant",
        "constant_length": 32,
    }  # fmt: skip
    assert stage.task["answer_column"] == "solution"
    assert [reward if isinstance(reward, str) else reward["name"] for reward in stage.task["reward"]] == [
        "math", "format", "rewards:short",
    ]  # fmt: skip
    assert {left.key for left in draft.left} == {"use_vllm", "vllm_gpu_memory_utilization", "log_completions"}


def test_axolotl(folder):
    draft = convert(folder, "axolotl_qlora.yml")
    stage = build_recipe(draft.recipe()).stages["sft"]
    assert [(part.path, part.weight) for part in stage.data.mix] == [("alpaca.jsonl", 40), ("chats.jsonl", 40)]
    assert (stage.model.quantize, stage.lora.rank, stage.lora.alpha, stage.optim.kind) == ("nf4", 32, 16, "adamw_8bit")
    assert (stage.batch_size, stage.max_length, stage.overlong, stage.data.heldout_share) == (8, 1024, "drop", 0.1)
    assert stage.engine.checkpointing is True
    left = {left.key: left.reason for left in draft.left}
    assert "datasets.1.train_on_eos" in left and "packed" in left["sample_packing"]
    draft = convert(folder, "axolotl_dpo.yml")
    stage = build_recipe(draft.recipe()).stages["dpo"]
    assert stage.algorithm == {"loss_type": "ipo", "beta": 0.2} and stage.lora.targets == "all-linear"
    assert (stage.engine.checkpointing, stage.optim.warmup_steps, stage.epochs) == ("offload", 10, 4)
    assert "datasets.0.type.prompt_format" in {left.key for left in draft.left}


def test_llama_factory(folder):
    draft = convert(folder, "llama_sft.yaml")
    stage = build_recipe(draft.recipe()).stages["sft"]
    own, talks = stage.data.mix
    assert own.maps == [{"name": "rename", "columns": {"ask": "instruction", "say": "output"}}] and not talks.maps
    assert (own.path, own.max_rows, stage.data.heldout_share) == ("own.jsonl", 30, 0.2)
    assert (stage.model.quantize, stage.lora.targets, stage.lora.alpha) == ("nf4", "all-linear", 16)
    draft = convert(folder, "llama_dpo.yaml")
    stage = build_recipe(draft.recipe()).stages["simpo"]
    assert stage.method == "simpo" and stage.algorithm == {"beta": 0.3, "gamma": 0.5}
    assert (stage.steps, stage.epochs, stage.max_length) == (12, None, 1024)
    assert "cosine is taken" in {left.key: left.reason for left in draft.left}["lr_scheduler_type"]


def test_the_defaults_of_trl_are_those_of_the_installed_one():
    from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, SFTConfig

    from aurify.conversion.trl import list_trl_defaults

    kinds = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig,
             "reward_model": RewardConfig}  # fmt: skip
    for method, kind in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs = kind(output_dir="x", use_cpu=True, bf16=False)
        for key, value in list_trl_defaults(method).items():
            found = getattr(ModelConfig if key.startswith("lora") else theirs, key)
            assert getattr(found, "value", found) == value, f"{key} of {method}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: {sft: {}}", "it has stages and is a recipe already"),
        ("nothing: 1", "it has no key of TRL, axolotl or LLaMA-Factory"),
        ("model_name_or_path: x\nstage: ppo", "stage: 'ppo' has no method here; take grpo or rloo"),
        ("base_model: x\ndatasets: [rows.jsonl]", "datasets: ['rows.jsonl']; expected a list of mappings"),
        ("model_name_or_path: x\ndatasets: rows.jsonl", "datasets: 'rows.jsonl'; expected a list of mappings"),
        ("model_name_or_path: x\nlabel_smoothing: 0\nloss_type: []", "a value has another form than trl writes it in"),
        ("base_model: x\nrl: bco", "rl: 'bco' is not known here"),
        ("model_name_or_path: x\nlora_r: many\nuse_peft: true", "lora_r: 'many' is no number"),
        ("model_name_or_path: x\nreward_funcs: [a.b]\nreward_weights: [1, 2]", "2 numbers for 1 reward_funcs"),
    ],
)
def test_what_cannot_be_converted_says_why(tmp_path, text, words):
    (tmp_path / "theirs.yaml").write_text(text)
    result = invoke("convert", str(tmp_path / "theirs.yaml"))
    assert result.exit_code == 2 and words in " ".join(result.stderr.split())


def test_what_is_not_said_is_told(folder):
    (folder / "bare.yaml").write_text("learning_rate: 1e-5\nbeta: 0.1\noptim: lion_8bit\nload_in_4bit: true\n")
    draft = convert(folder, "bare.yaml")
    assert draft.method == "dpo"
    assert [note.partition(":")[0] for note in draft.notes] == ["method", "data", "model"]
    left = {left.key: left.reason for left in draft.left}
    assert "AdamW" in left["optim"] and "needs an adapter" in left["load_in_4bit"]
    with pytest.raises(UserError, match="no model"):
        build_recipe(draft.recipe())
    assert invoke("convert", "bare.yaml", "--method", "kto").stdout.count("method: kto") == 1
    assert invoke("convert", "bare.yaml", "--method", "ppo").exit_code == 2


def test_the_recipe_is_read_back_as_it_was_made(folder):
    draft = convert(folder, "trl_grpo.yaml")
    (folder / "r.yaml").write_text(invoke("convert", "trl_grpo.yaml").stdout)
    assert load_config(folder / "r.yaml") == draft.recipe()


HEAD = {
    "trl": {"model_name_or_path": "random:tiny"},
    "axolotl": {"base_model": "random:tiny", "learning_rate": 1e-4, "adapter": "lora", "lora_r": 4, "lora_alpha": 8},
    "llama-factory": {"model_name_or_path": "random:tiny", "finetuning_type": "lora", "dataset_dir": "."},
}
OTHERS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [  # library, config, method, options of the stage
    ("trl", {"dataset_name": "labels.jsonl", "desirable_weight": 1.3}, "kto",
     {"algorithm": {"beta": 0.1, "desirable_weight": 1.3}}),
    ("trl", {"dataset_name": "pairs.jsonl", "center_rewards_coefficient": 0.01}, "reward_model",
     {"algorithm": {"centering": 0.01}}),
    ("trl", {"dataset_name": "pairs.jsonl", "beta": 0.2, "loss_type": "aot"}, "aot", {"algorithm": {"beta": 0.2}}),
    ("trl", {"dataset_name": "pairs.jsonl", "beta": 1, "loss_type": ["exo_pair"], "label_smoothing": 0.01}, "dpo",
     {"algorithm": {"beta": 1, "loss_type": "exo", "label_smoothing": 0.01}}),
    ("trl", {"dataset_name": "pairs.jsonl", "beta": 1, "f_divergence_type": "FDivergenceType.JS_DIVERGENCE"}, "dpo",
     {"algorithm": {"beta": 1, "divergence": "js"}}),
    ("trl", {"dataset_name": "chats.jsonl", "max_steps": 4, "num_train_epochs": 3, "truncation_mode": "keep_end"},
     "sft", {"steps": 4, "epochs": None, "overlong": "cut_left"}),
    ("trl", {"datasets": [{"path": "chats.jsonl"}, {"path": "alpaca.jsonl"}]}, "sft", {"epochs": 3}),
    ("trl", {"dataset_name": "tasks.jsonl", "num_generations": 4, "reward_funcs": ["accuracy_reward"],
             "importance_sampling_level": "sequence", "epsilon": 3e-4}, "gspo", {"prompts_per_step": 2}),
    ("trl", {"dataset_name": "tasks.jsonl", "num_generations": 4, "reward_funcs": ["accuracy_reward"],
             "loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.2}, "cispo", {"steps": 60}),
    ("axolotl", {"rl": "grpo", "datasets": [{"path": "tasks.jsonl", "split": "train"}], "micro_batch_size": 8,
                 "trl": {"num_generations": 4, "beta": 0.001, "reward_funcs": ["rewards.short"], "use_vllm": True}},
     "grpo", {"prompts_per_step": 2,
              "algorithm": {"kl_coef": 0.001, "clip_low": 0.2, "clip_high": 0.2, "aggregator": "token"}}),
    ("axolotl", {"rl": "orpo", "orpo_alpha": 0.2, "datasets": [{"path": "pairs.jsonl", "type": "chat_template.x"}]},
     "orpo", {"algorithm": {"beta": 0.2}}),
    ("trl", {"dataset_name": "tasks.jsonl", "num_generations": 4, "reward_funcs": ["accuracy_reward"],
             "steps_per_generation": 4, "gradient_accumulation_steps": 2}, "grpo",
     {"prompts_per_step": 8, "num_minibatches": 2}),
    ("trl", {"dataset_name": "tasks.jsonl", "num_generations": 4, "reward_funcs": ["accuracy_reward"],
             "loss_type": "sapo", "sapo_temperature_neg": 1.2}, "sapo", {"completions_per_prompt": 4}),
    ("axolotl", {"rl": "kto", "rl_beta": 0.5, "kto_undesirable_weight": 0.2, "micro_batch_size": 4,
                 "datasets": [{"path": "labels.jsonl"}]},
     "kto", {"algorithm": {"beta": 0.5, "undesirable_weight": 0.2}}),
    ("axolotl", {"reward_model": True, "datasets": [{"path": "pairs.jsonl"}]}, "reward_model", {"max_length": 512}),
    ("axolotl", {"datasets": [{"path": "texts.jsonl", "type": "completion"}]}, "sft", {"overlong": "drop"}),
    ("axolotl", {"datasets": [{"path": "roles.jsonl", "type": "chat_template", "field_messages": "talk",
                               "message_property_mappings": {"role": "from", "content": "value"},
                               "roles": {"user": ["visitor"], "assistant": ["clerk", "gpt"]}}]}, "sft", {"epochs": 1}),
    ("axolotl", {"adapter": None, "datasets": [{"path": "json", "data_files": ["chats.jsonl", "alpaca.jsonl"]}]}, "sft",
     {"lora": None}),
    ("llama-factory", {"stage": "rm", "dataset": "votes"}, "reward_model", {"batch_size": 8}),
    ("llama-factory", {"stage": "kto", "dataset": "labelled", "kto_chosen_weight": 2.0}, "kto",
     {"algorithm": {"beta": 0.1, "desirable_weight": 2.0}}),
    ("llama-factory", {"stage": "dpo", "dataset": "votes", "pref_loss": "orpo"}, "orpo", {"algorithm": {"beta": 0.1}}),
    ("llama-factory", {"stage": "pt", "dataset": "texts"}, "sft", {"epochs": 3}),
    ("llama-factory", {"stage": "sft", "dataset": "identity", "finetuning_type": "full", "use_dft_loss": True,
                       "mask_history": True, "eval_dataset": "talks"}, "sft",
     {"lora": None, "train_on": "last", "algorithm": {"loss_type": "dft"}}),
]  # fmt: skip


@pytest.mark.parametrize(("library", "config", "method", "options"), OTHERS)
def test_other_methods_and_forms_of_data_pass_the_dry_run(folder, library, config, method, options):
    more = {
        "labels": lambda k: {"prompt": f"{k}+1?", "completion": f"{k}", "label": k % 2 == 0},
        "labelled": lambda k: {"instruction": f"{k}+1?", "output": f"{k}", "kto_tag": k % 2 == 0},
        "texts": lambda k: {"text": f"{k} is a number."},
        "roles": lambda k: {"talk": [{"from": "visitor", "value": f"{k}?"}, {"from": "clerk", "value": f"{k}"}]},
    }
    for name, row in more.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(k)) + "\n" for k in range(40)))
    named = {"labelled": {"file_name": "labelled.jsonl", "columns": {"kto_tag": "kto_tag"}},
             "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(INFO | named))
    (folder / "theirs.json").write_text(json.dumps(HEAD[library] | config))
    result = invoke("convert", "theirs.json", "--to", "recipe.yaml")
    assert result.exit_code == 0, result.output
    stage = build_recipe(load_config("recipe.yaml")).stages[method]
    assert {key: getattr(stage, key) for key in options} == options
    dry = invoke("train", "recipe.yaml", "--dry-run")
    assert dry.exit_code == 0 and "The recipe is fine" in dry.stdout, dry.output


@pytest.mark.parametrize("kind", ["SFTConfig", "DPOConfig", "GRPOConfig"])
def test_all_training_arguments_as_trl_writes_them_are_taken_or_listed(folder, kind):
    import trl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = getattr(trl, kind)(output_dir="x", use_cpu=True, bf16=False)
    data = {"SFTConfig": "chats", "DPOConfig": "pairs", "GRPOConfig": "tasks"}[kind]
    rewards = {"reward_funcs": ["accuracy_reward"]} if kind == "GRPOConfig" else {}
    given = {**arguments.to_dict(), **HEAD["trl"], "dataset_name": f"{data}.jsonl", **rewards}
    (folder / "training_args.json").write_text(json.dumps(given, default=str))
    method = kind.removesuffix("Config").lower()
    result = invoke("convert", "training_args.json", "--to", "recipe.yaml", "--method", method)
    assert result.exit_code == 0, result.output
    dry = invoke("train", "recipe.yaml", "--dry-run")
    assert dry.exit_code == 0, dry.output
    text = (folder / "recipe.yaml").read_text()
    silent = {key for key, value in given.items() if value not in (None, False) and key not in text}
    usual = {
        "max_steps",
        "gradient_checkpointing",
        "importance_sampling_level",
        "steps_per_generation",
    }  # say nothing more
    assert silent <= KNOWN_FROM_OTHERS | usual, "dropped in silence"
    stage = build_recipe(load_config("recipe.yaml")).stages[method]
    assert (stage.optim.lr, stage.optim.schedule) == (arguments.learning_rate, "linear")
    assert load_config("recipe.yaml")["seed"] == 42

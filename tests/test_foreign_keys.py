"""Words of TRL, transformers, peft, LLaMA-Factory and axolotl: each leads to a key that there is, in the words of where
it was written."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from click import unstyle
from typer.testing import CliRunner

from aurify import registry
from aurify.cli.main import app
from aurify.cli.reference import list_recipe_keys
from aurify.errors import UserError
from aurify.foreign_keys import KEYS, METHODS, WITHOUT, translate_key
from aurify.pipeline.recipe import OfflineStage, OnlineStage, build_recipe, build_stage_algorithm

# as the four frameworks' examples write them
EXAMPLES = """
    learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_seq_length warmup_ratio
    lr_scheduler_type num_generations max_completion_length max_prompt_length gradient_checkpointing bf16 torch_dtype
    model_name_or_path dataset_name dataset_config dataset_train_split use_peft lora_r lora_alpha lora_dropout
    lora_target_modules load_in_4bit max_steps save_steps logging_steps output_dir report_to push_to_hub epsilon
    num_iterations scale_rewards reward_funcs adam_beta2 max_grad_norm weight_decay packing attn_implementation
    r target_modules
    stage finetuning_type lora_rank lora_target cutoff_len max_samples template preprocessing_num_workers plot_loss
    overwrite_cache pref_beta pref_loss quantization_bit val_size
    base_model adapter sequence_len sample_packing micro_batch_size num_epochs optimizer lr_scheduler val_set_size
    train_on_inputs lora_target_linear saves_per_epoch flash_attention wandb_project rl_beta
"""
REAL_WORLD = EXAMPLES.split()


def list_stage_keys(cls: type) -> set[str]:
    """All keys of a stage, counted from it."""
    from aurify.cli.reference import list_option_fields

    return {option.key for option in list_option_fields(cls)}


def exists(target: str, cls: type, method: str | None = None) -> bool:
    first, _, rest = target.partition(".")
    if first == "task":
        return not rest or rest in {"reward", *inspect.signature(registry.get_entry("task", "jsonl")).parameters}
    if first == "algorithm":
        methods = [method] if method else registry.list_registered("algorithm")
        kinds = [registry.get_entry("algorithm", name) for name in methods]
        online = cls is OnlineStage
        return any(
            rest in {field.name for field in dataclasses.fields(kind)}
            for kind in kinds
            if (kind.learns_from == "rollouts") is online
        )
    top = {option.key for option in list_recipe_keys()["The whole recipe"]}
    return target in list_stage_keys(cls) | top


@pytest.mark.parametrize("name", KEYS)
def test_each_word_leads_to_a_key_of_the_stage_where_it_is_said(name):
    key = KEYS[name]
    assert key.targets, name
    for cls, online in ((OfflineStage, False), (OnlineStage, True)):
        target = key.choose(online)
        assert not target or exists(target, cls), f"{name} -> {target} of {cls.__name__}"


def test_a_word_is_known_or_has_none_and_methods_are_there():
    assert not KEYS.keys() & WITHOUT.keys()
    assert not (KEYS.keys() | WITHOUT.keys()) & ({"steps", "epochs", "batch_size", "max_length"})
    for text in METHODS.values():
        assert text.split()[0] in registry.list_registered("algorithm")


@pytest.mark.parametrize("name", [name for name in REAL_WORLD if name != "stage"])
def test_words_of_the_four_frameworks_get_a_hint_in_a_recipe(name):
    for method in ("sft", "grpo") if name != "num_epochs" else ("sft",):  # grpo has a num_epochs of its own
        stage = {"method": method, "data": {"path": "x"}, name: 1} if method == "sft" else {"method": method, name: 1}
        with pytest.raises(UserError) as raised:
            build_recipe({"model": "random:tiny", "stages": {"s": stage}})
        assert re.search(r"here that is|there is none here", str(raised.value)), raised.value
    with pytest.raises(UserError) as raised:
        build_recipe({"model": "random:tiny", "stages": {"s": {"method": "grpo"}}, name: 1})
    assert re.search(r"here that is|there is none here", str(raised.value)), raised.value


def test_there_are_more_than_forty_of_them():
    assert len(REAL_WORLD) > 60


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [
        ("sft", "learning_rate", "here that is optim.lr"),
        ("sft", "num_train_epochs", "here that is epochs"),
        ("grpo", "num_train_epochs", "here that is steps"),
        ("dpo", "beta", "here that is algorithm.beta"),
        ("grpo", "beta", "here that is algorithm.kl_coef"),
        ("sft", "num_generations", "completions_per_prompt, of a stage with answers of its own, such as method: grpo"),
        ("grpo", "val_size", "here that is task.num_heldout"),
        ("grpo", "mask_history", "train_on, assistant, last or marked, of a stage with data, such as method: sft"),
        ("sft", "run_name", "here that is name"),
    ],
)
def test_the_hint_is_that_of_the_stage(method, name, expected):
    stage = {"method": method, name: 1} | ({} if method == "grpo" else {"data": {"path": "x"}})
    with pytest.raises(UserError) as raised:
        build_recipe({"model": "random:tiny", "stages": {"s": stage}})
    assert str(raised.value).endswith(expected)


def test_at_the_top_the_stage_is_named_unless_the_key_stands_at_the_top_too():
    def refuse(name: str) -> str:
        with pytest.raises(UserError) as raised:
            build_recipe({"model": "random:tiny", "stages": {"s": {"method": "grpo"}}, name: 1})
        return str(raised.value)

    assert refuse("learning_rate").endswith("here that is stages.NAME.optim.lr")
    assert refuse("lora_r").endswith("here that is lora.rank")
    assert refuse("num_train_epochs").endswith(
        "here that is stages.NAME.epochs or stages.NAME.steps where the model's own answers are trained on"
    )
    assert refuse("data_seed").endswith("here that is seed")


def test_in_a_method_only_its_own_options_are_named():
    def refuse(method: str, name: str) -> str:
        stage = {"method": method} | ({} if method == "grpo" else {"data": {"path": "x"}})
        options = build_recipe({"model": "random:tiny", "stages": {"s": stage | {"algorithm": {name: 1}}}})
        with pytest.raises(UserError) as raised:
            build_stage_algorithm(options.stages["s"], "stages.s")
        return str(raised.value)

    assert refuse("grpo", "beta").endswith("here that is algorithm.kl_coef")
    assert refuse("simpo", "pref_beta").endswith("here that is algorithm.beta")
    assert "here that is" not in refuse("sft", "beta"), "sft has nothing of the kind"
    assert refuse("dpo", "learning_rate").endswith("here that is optim.lr")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--learning_rate", "without dashes; here that is stages.NAME.optim.lr"),
        ("--num-train-epochs", "here that is stages.NAME.epochs or stages.NAME.steps"),
        ("--logging_steps", "there is none here: every step is in metrics.jsonl"),
        ("--steps", "such as stages.NAME.steps=VALUE"),
    ],
)
def test_dashes_on_the_command_line_lead_to_the_key(option, words):
    result = CliRunner().invoke(app, ["train", "quickstart", option, "1"])
    assert result.exit_code == 2 and words in " ".join(re.sub(r"[│╭╮╰╯─]", " ", unstyle(result.output)).split())


def test_help_knows_the_words():
    assert "here that is optim.lr" in CliRunner().invoke(app, ["help", "learning_rate"]).output
    assert "vllm_server" in translate_key("use_vllm")


PAGE = (Path(__file__).parents[1] / "docs" / "convert.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("written", "answer"), TABLE, ids=lambda text: text[:30])
def test_the_table_of_the_docs_is_what_a_recipe_answers(written, answer):
    expected = answer.partition("`")[2].partition("`")[0] if answer.startswith("`") else answer.partition(" here")[0]
    for word in re.findall(r"`(.*?)`", written):
        _, method, name = word.split(".") if "." in word else ("", "dpo" if "beta" in word else "sft", word)
        stage = {"method": method, name: 1} | ({} if method == "grpo" else {"data": {"path": "x"}})
        with pytest.raises(UserError) as raised:
            build_recipe({"model": "random:tiny", "stages": {"s": stage}})
        assert expected in str(raised.value), word


def test_the_commands_of_the_docs_have_options_that_there_are():
    lines = re.findall(r"^aurify (convert|init) (.*?)(?: {2,}#.*)?$", PAGE, re.MULTILINE)
    assert TABLE and len(lines) > 2
    for command, words in lines:
        known = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in unstyle(known) for option in re.findall(r"--\w+", words)), words

"""The dry run reads every row, prompt, target and reward column, and a run is refused by the same checks before it has
a folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from typer.testing import CliRunner

from aurify import registry
from aurify.cli.main import app
from aurify.config import load_config
from aurify.models.loading import save_model
from aurify.models.model import tiny_model
from aurify.pipeline import contents, examples
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe

SFT = {"method": "sft", "data": {"path": "rows.jsonl"}, "steps": 2, "batch_size": 2}
RL = {"method": "grpo", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2, "sampling": {"max_tokens": 4}}
LONG = "x" * 60_000
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})


def write_rows(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(stages: dict[str, Any], **more: Any) -> None:
    recipe = {"model": "random:tiny", "evaluation": {"num_tasks": 0}, "stages": stages, **more}
    Path("recipe.yaml").write_text(json.dumps(recipe))


def invoke(*command: str) -> Any:
    return CliRunner().invoke(app, list(command))


def refusal() -> str:
    """What both the dry run and the run say; neither leaves a folder."""
    said = []
    for more in (["--dry-run"], []):
        result = invoke("train", "recipe.yaml", *more)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
        assert "The recipe is fine" not in result.stdout and not Path("runs").exists()
        said.append(" ".join(result.stderr.split()))
    assert said[0] == said[1]
    return said[0]


def dry_run(*overrides: str) -> str:
    result = invoke("train", "recipe.yaml", "--dry-run", *overrides)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


# ---------------------------------------------------------------------- rows


def test_a_tool_row_that_the_template_leaves_out():
    rows: list[dict[str, Any]] = [{"messages": CHAT} for _ in range(30)]
    rows[17] = {"messages": CHAT, "tools": TOOLS}
    write_rows(rows)
    write_recipe({"sft": SFT | {"data": {"path": "rows.jsonl", "heldout_share": 0}}})
    said = refusal()
    assert "stages.sft: rows.jsonl:18: the model's chat template leaves out the tools" in said
    assert "set tools_as_text: true" in said
    assert "30 sequences" in dry_run("tools_as_text=true")


PAIR = {"prompt": "Why?", "chosen": "so", "rejected": "no"}


@pytest.mark.parametrize(
    ("method", "row", "column"),
    [
        ("sft", {"prompt": "Why?", "completion": "so"}, "completion"),
        ("dpo", PAIR, "rejected"),
        ("reward_model", PAIR, "chosen"),
        ("kto", {"prompt": "Why?", "completion": "so", "label": True}, "prompt"),
    ],
)
def test_a_row_of_60_000_tokens_far_from_the_first(method, row, column):
    rows = [dict(row, prompt=f"{k}?") for k in range(40)]
    rows[31][column] = LONG
    write_rows(rows)
    write_recipe({"one": SFT | {"method": method, "data": {"path": "rows.jsonl", "heldout_share": 0}}})
    said = refusal()
    assert "stages.one: rows.jsonl:32: the row has 60" in said and "`overlong: drop`" in said
    told = dry_run("stages.one.overlong=drop")
    assert "1 row dropped: above 1024 tokens" in told and "and 1,024 would fit" in told


def test_rows_of_a_later_stage_and_of_the_model_that_its_chain_begins_with():
    write_rows([{"prompt": f"{k}?", "completion": "so"} for k in range(20)])
    write_rows(
        [{"prompt": f"{k}?", "chosen": "so", "rejected": LONG if k == 7 else "no"} for k in range(20)], "p.jsonl"
    )
    second = {"method": "dpo", "model": "@one", "data": {"path": "p.jsonl", "heldout_share": 0}, "steps": 1}
    write_recipe({"one": SFT, "two": second})
    assert "stages.two: p.jsonl:8: the row has 60" in refusal()


def test_demonstrations_are_rows_too():
    write_recipe({"one": SFT | {"data": {"demonstrations": 8}, "max_length": 20}}, task="largest_number")
    assert "stages.one: task largest_number/" in (said := refusal()) and "at most 20 fit" in said


def test_what_is_cut_and_counted_stands_in_the_dry_run():
    turns = [*CHAT, *({"role": role, "content": "x" * 400} for role in ("user", "assistant", "user", "assistant"))]
    write_rows([{"messages": [{**m, "content": f"{m['content']} {k}"} for m in turns]} for k in range(10)])
    write_recipe({"one": SFT | {"overlong": "cut_right", "data": {"path": "rows.jsonl", "heldout_share": 0.2}}})
    told = dry_run()
    assert "8 rows cut: above 1024 tokens, cut_right" in told
    assert "2 rows dropped: held out: above 1024 tokens" in told, "a number is taken of whole rows"


# ---------------------------------------------------------------------- prompts and targets


@pytest.mark.parametrize("first", [{}, {"one": SFT | {"data": {"demonstrations": 4}}}])
def test_a_prompt_of_45_000_tokens_among_many(first):
    write_rows([{"prompt": "y" * 45_000 if k == 33 else f"{k}?", "answer": str(k)} for k in range(40)])
    stage = RL | ({"model": "@one"} if first else {})
    write_recipe(first | {"rl": stage}, task={"name": "jsonl", "path": "rows.jsonl", "num_heldout": 3})
    said = refusal()
    assert "stages.rl: task 'rows.jsonl:34': its prompt has 45" in said and "overlong: drop" in said
    told = dry_run("stages.rl.overlong=drop")
    assert "tasks left out whose prompts leave no room to answer: 1" in told and "the longest prompt has" in told


def test_the_prompts_of_sampled_pairs():
    write_rows([{"prompt": "y" * 45_000 if k == 33 else f"{k}?", "answer": str(k)} for k in range(40)])
    task = {"name": "jsonl", "path": "rows.jsonl", "num_heldout": 3}
    write_recipe({"dpo": {"method": "dpo", "data": {"sample": {"num_tasks": 4}}, "steps": 1}}, task=task)
    assert "stages.dpo: task 'rows.jsonl:34': its prompt has 45" in refusal()


@pytest.mark.parametrize("targets", [["foo"], ["q_proj", "foo"]])
def test_layers_that_the_model_does_not_have(targets):
    write_recipe(
        {"one": SFT | {"data": {"demonstrations": 4}, "lora": {"rank": 4, "targets": targets}}}, task="largest_number"
    )
    assert "stages.one: lora.targets: no layer is named 'foo'; this model has down_proj, gate_proj" in refusal()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 8}, "lora: rank 8 and alpha 32.0 differ from the adapter of stages.one (4, 32.0)"),
        ({"rank": 4, "targets": ["q_proj"]}, "differ from the layers of the adapter of stages.one"),
    ],
)
def test_another_adapter_than_that_of_the_stage_before(lora, said):
    first = SFT | {"data": {"demonstrations": 4}, "lora": {"rank": 4}}
    write_recipe({"one": first, "rl": RL | {"model": "@one", "lora": lora}}, task="largest_number")
    assert f"stages.rl: lora{'.targets' if 'targets' in lora else ''}" in (told := refusal()) and said in told


def test_a_teacher_that_reads_other_tokens(tmp_path):
    tokenizer = made.word_start()
    save_model(tiny_model(vocab_size=len(tokenizer)).module, tokenizer, tmp_path / "other")
    task = "largest_number"
    write_recipe({"one": RL | {"method": "distillation", "teacher": "other"}}, task=task)
    assert "stages.one: teacher: other reads other tokens than random:tiny" in refusal()
    first = SFT | {"data": {"demonstrations": 4}}
    write_recipe({"sft": first, "one": RL | {"method": "distillation", "teacher": "@sft"}}, task=task)
    assert "The recipe is fine" in dry_run()


# ---------------------------------------------------------------------- rewards

REWARDS = """
def by_level(task, trajectory):
    return float(task.info["level"])

def trl(completions, level):
    return [float(each) for each in level]

def trl_columns(completions, **columns):
    return [float(each) for each in columns["level"]]

def helped(task, trajectory):
    return read(task.info)

def read(info):
    return info.get("level").bit_length()

def careful(task, trajectory):
    return None if "level" not in task.info else 1.0

def of_the_answer(task, trajectory):
    return {"a": 1.0}[trajectory.text]
"""


def write_tasks(without: int, reward: str, *, answer: bool = True) -> None:
    Path("mine.py").write_text(REWARDS)
    rows = [{"prompt": f"{k}?", "level": k} | ({"answer": str(k)} if answer else {}) for k in range(30)]
    rows[without].pop("level")
    write_rows(rows)
    task = {"name": "jsonl", "path": "rows.jsonl", "reward": reward, "num_heldout": 3}
    write_recipe({"rl": RL}, task=task if answer else task | {"answer_column": None})


@pytest.mark.parametrize("name", ["by_level", "trl", "trl_columns", "helped"])
def test_a_reward_that_needs_a_column_which_one_row_lacks(name):
    write_tasks(23, f"mine.py:{name}")
    said = refusal()
    assert f"stages.rl: task 'rows.jsonl:24': reward '{name}' needs the column 'level'" in said
    assert "the task has the columns answer: " in said and "Add the column" in said


@pytest.mark.parametrize(("name", "caution"), [("careful", False), ("of_the_answer", True)])
def test_a_reward_that_fails_for_other_reasons_is_no_mistake_of_the_recipe(name, caution, caplog):
    write_tasks(23, f"mine.py:{name}")
    assert "The recipe is fine" in dry_run()
    assert ("KeyError: 'I do not know.'" in caplog.text) is caution


def test_tasks_without_an_answer_to_judge_by():
    write_tasks(3, "exact_match", answer=False)
    assert "no reward judges it (exact_match)" in refusal()


def test_a_right_answer_that_the_reward_cannot_read_in_one_row():
    write_rows([{"prompt": f"{k}?", "answer": "many" if k == 25 else str(k)} for k in range(30)])
    write_recipe({"rl": RL}, task={"name": "jsonl", "path": "rows.jsonl", "reward": "number_match", "num_heldout": 3})
    said = refusal()
    assert "the answer 'many' of task 'rows.jsonl:26' is no number; use exact_match or math" in said


# ---------------------------------------------------------------------- one work for both


@pytest.fixture
def encoded(monkeypatch) -> Counter[str]:
    """How often each row became tokens."""
    counts: Counter[str] = Counter()
    real = examples.encode

    def count(given, renderer, options):
        given = list(given)
        counts.update(example.location for example in given)
        return real(given, renderer, options)

    monkeypatch.setattr(examples, "encode", count)
    return counts


def test_a_run_encodes_each_row_once(encoded, monkeypatch):
    write_rows([{"prompt": f"{k}?", "completion": "so"} for k in range(20)])
    write_rows([{"prompt": f"{k}?", "completion": "no"} for k in range(20)], "more.jsonl")
    write_recipe({"one": SFT, "two": SFT | {"model": "@one", "data": {"path": "more.jsonl"}}})
    assert invoke("train", "recipe.yaml").exit_code == 0
    assert len(encoded) == 40 and set(encoded.values()) == {1}
    encoded.clear()
    monkeypatch.setattr(contents, "MAX_KEPT", 100)
    assert invoke("train", "recipe.yaml").exit_code == 0
    assert {encoded[f"rows.jsonl:{k}"] for k in range(1, 21)} == {1}, "the first stage's rows are always kept"
    assert {encoded[f"more.jsonl:{k}"] for k in range(1, 21)} == {2}


def test_a_run_that_goes_on_does_not_encode_the_rows_of_finished_stages(encoded):
    write_rows([{"prompt": f"{k}?", "completion": "so"} for k in range(20)])
    write_recipe({"one": SFT, "two": SFT | {"model": "@one"}})
    assert invoke("train", "recipe.yaml").exit_code == 0
    encoded.clear()
    assert invoke("train", "--resume", "last").exit_code == 0 and not encoded
    result = invoke("train", "--resume", "last", "--dry-run", "stages.one.steps=9")
    assert result.exit_code == 2 and "stages.one.steps: 2 -> 9 would change nothing" in " ".join(result.stderr.split())


def test_a_dry_run_loads_no_weights(tmp_path, monkeypatch):
    model = tiny_model()
    save_model(model.module, model.tokenizer, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    write_rows([{"prompt": f"{k}?", "completion": "so"} for k in range(20)])
    write_recipe({"one": SFT | {"lora": {"rank": 4}}}, model="model")
    assert "18 to train on; 2 held out" in dry_run()


def test_how_far_it_is_is_told_while_rows_are_read():
    write_rows([{"prompt": f"{k}?", "completion": "so"} for k in range(450)])
    write_recipe({"one": SFT | {"data": {"path": "rows.jsonl", "heldout_share": 0}}})
    told: list[str] = []
    check_recipe(build_recipe(load_config("recipe.yaml")), tell=told.append)
    assert [f"one: {k} of 450 rows in tokens" for k in (0, 200, 400)] == [line for line in told if " of " in line]

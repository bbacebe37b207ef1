"""The whole chain on a random model, in float32 and in bfloat16: every stage trains, hands its model on, and is
measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tolerances
import torch
from pipelines import run, steps, tiny
from safetensors.torch import load_file

from aurify.config import load_config

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "pipeline.yaml"
SHORTER = [
    "stages.sft.steps=80",
    "stages.reward.data.sample.num_tasks=96",
    "stages.reward.epochs=2",
    "stages.dpo.epochs=1",
    "stages.grpo.steps=4",
]
TOY = Path(__file__).parents[1] / "toy.py"


def recipe(dtype: str) -> dict[str, Any]:
    return {**load_config(RECIPE, SHORTER), "model": tiny(dtype)}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, dtype: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    path = tmp_path_factory.mktemp("chain")
    return path, run(recipe(dtype), path)


def test_every_stage_finished_and_was_measured(chain):
    _, results = chain
    assert list(results) == ["sft", "reward", "dpo", "grpo"]
    assert {result["status"] for result in results.values()} == {"finished"}
    assert [result["measure"] for result in results.values()] == [
        "number_match",
        "pair accuracy",
        "number_match",
        "number_match",
    ]
    assert results["sft"]["after"] > results["sft"]["before"]
    assert results["dpo"]["before"] == results["sft"]["after"], "measured once, used twice"
    assert results["grpo"]["before"] == results["dpo"]["after"]


def test_what_a_stage_leaves_is_what_the_next_one_starts_from(chain):
    from aurify.models.names import resolve_model

    path, _ = chain
    sft = path / "sft" / "final"
    assert (
        resolve_model(str(path / "dpo" / "final")).base
        == resolve_model(str(path / "grpo" / "final")).base
        == str(sft.resolve())
    )
    dpo, grpo = (load_file(path / stage / "final" / "adapter_model.safetensors") for stage in ("dpo", "grpo"))
    assert all(tensor.any() for name, tensor in dpo.items() if "lora_B" in name), "an adapter that was never trained"
    assert all(not grpo[name].equal(tensor) for name, tensor in dpo.items())
    distance = sum(float((grpo[name] - tensor).norm() ** 2) for name, tensor in dpo.items()) ** 0.5
    size = sum(float(tensor.norm() ** 2) for tensor in dpo.values()) ** 0.5
    assert distance < 0.2 * size, "grpo starts from the adapter of dpo, not from a fresh one"
    trained, reward = load_file(sft / "model.safetensors"), load_file(path / "reward" / "final" / "model.safetensors")
    shared = trained.keys() & reward.keys()
    assert len(shared) > 10 and all(not trained[name].equal(reward[name]) for name in shared)
    assert all(float((trained[name] - reward[name]).abs().max()) < 0.1 for name in shared)


def test_the_folders_load_with_plain_transformers(chain, dtype):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from aurify.engine.engine import Engine
    from aurify.models.model import ModelConfig, load_model
    from aurify.types import Datum

    path, _ = chain
    bound = tolerances.per_token(dtype)
    for stage, auto in (("sft", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification)):
        plain = auto.from_pretrained(path / stage / "final")
        tokens = AutoTokenizer.from_pretrained(path / stage / "final")("17 or 3?").input_ids
        with torch.no_grad():
            logits = plain(torch.tensor([tokens])).logits[0].float()
        scalar = stage == "reward"
        config = ModelConfig(str(path / stage / "final"), dtype=dtype)
        engine = Engine(load_model(config, scalar_head=scalar), trainable=False)
        if scalar:
            assert engine.scores([Datum(tokens, [0.0] * len(tokens))]) == pytest.approx(logits.tolist(), abs=bound)
        else:
            [known] = engine.logprobs([Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1))])
            expected = logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]]
            assert known[1:] == pytest.approx(expected.tolist(), abs=bound)


def test_reward_and_dpo_learn_from_the_same_pairs_and_grpo_hears_both_rewards(chain):
    path, _ = chain
    pairs = [json.loads(line) for line in (path / "reward" / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["rewards"][0] > pair["rewards"][1] for pair in pairs)
    assert not (path / "dpo" / "pairs.jsonl").exists()
    [rows] = {row["ledger/rows"] for row in steps(path / "dpo" / "ledger.jsonl")[:-1]}
    assert rows == 32, "16 pairs"
    for row in steps(path / "grpo" / "metrics.jsonl"):
        parts = row["reward/number_match"] + 0.1 * row["reward/reward_model"]
        assert row["reward/mean"] == pytest.approx(parts)


def test_running_it_again_changes_nothing(chain, dtype):
    path, results = chain
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert run(recipe(dtype), path) == results
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_grpo_learns_a_toy(tmp_path, dtype):
    values = {
        "model": tiny(dtype),
        "plugins": [str(TOY)],
        "task": "toy_letters",
        "evaluation": {"num_tasks": 8, "sampling": {"max_tokens": 8}},
        "stages": {
            "grpo": {
                "method": "grpo",
                "steps": 25,
                "sampling": {"max_tokens": 8},
                "optim": {"lr": 3e-3},
            }
        },
    }
    results = run(values, tmp_path)
    rewards = [row["reward/mean"] for row in steps(tmp_path / "grpo" / "metrics.jsonl")]
    assert fmean(rewards[:3]) < 0.2 and fmean(rewards[-3:]) > 0.5
    assert results["grpo"]["before"] < 0.4 and results["grpo"]["after"] > 0.5

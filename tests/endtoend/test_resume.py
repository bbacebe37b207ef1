"""A run that is killed and resumed is, bit for bit, the run that was not: metrics, samples and weights of every
stage."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pipelines import run_to_the_end, signal_at, steps
from safetensors.torch import load_file

RECIPE = {
    "model": "random:tiny",
    "task": {"name": "largest_number", "count": 2, "maximum": 20, "num_heldout": 10},
    "evaluation": {"num_tasks": 10, "sampling": {"max_tokens": 4, "temperature": 0.0}},
    "stages": {
        "sft": {
            "method": "sft",
            "data": {"demonstrations": 100},
            "steps": 40,
            "checkpoint_every": 7,
            "optim": {"lr": 3e-3, "schedule": "cosine", "warmup_steps": 3},
        },
        "grpo": {
            "method": "grpo",
            "model": "@sft",
            "lora": {"rank": 4, "dropout": 0.1},
            "steps": 14,
            "prompts_per_step": 4,
            "completions_per_prompt": 6,
            "num_minibatches": 2,
            "sampling": {"max_tokens": 4},
            "algorithm": {"kl_coef": 0.05},
            "checkpoint_every": 4,
            "samples_every": 2,
            "optim": {"lr": 1e-3, "schedule": "linear"},
        },
    },
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("straight")
    run_to_the_end(RECIPE, path)
    return path


def assert_same(path: Path, other: Path) -> None:
    for stage, options in RECIPE["stages"].items():
        for name in ("metrics.jsonl", "ledger.jsonl", "samples.jsonl"):
            assert steps(path / stage / name) == steps(other / stage / name), f"{stage}/{name}"
        assert [row["step"] for row in steps(path / stage / "metrics.jsonl")] == list(range(1, options["steps"] + 1))
        for file in sorted((path / stage / "final").glob("*.safetensors")):
            ours, theirs = load_file(file), load_file(other / stage / "final" / file.name)
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours), f"{stage}/final"


def test_killed_in_each_stage_and_resumed(straight: Path, tmp_path: Path):
    assert signal_at(RECIPE, tmp_path, "sft", 17, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "sft" / "final").exists()
    assert signal_at(RECIPE, tmp_path, "grpo", 6, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "grpo" / "final").exists()
    run_to_the_end(RECIPE, tmp_path)
    assert_same(straight, tmp_path)


def test_asked_to_stop_in_each_stage_and_resumed(straight: Path, tmp_path: Path):
    for stage, step in (("sft", 12), ("grpo", 3)):
        assert signal_at(RECIPE, tmp_path, stage, step, signal.SIGTERM) == 1  # KeyboardInterrupt, after a checkpoint
        [checkpoint] = (tmp_path / stage / "checkpoints").iterdir()
        done = len(steps(tmp_path / stage / "metrics.jsonl"))
        assert checkpoint.name == f"step_{done:06d}" and done >= step, "a checkpoint of this very step"
    run_to_the_end(RECIPE, tmp_path)
    assert_same(straight, tmp_path)

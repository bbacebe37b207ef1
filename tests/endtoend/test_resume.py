"""A run that is killed and resumed is, bit for bit, the run that was not: metrics, samples and weights of every
stage, in float32 and in bfloat16."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from pipelines import ON_NUMBERS, SHORT_ONLINE, assert_same, run_to_the_end, signal_at, steps, tiny

RECIPE: dict[str, Any] = {
    **ON_NUMBERS,
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
            **SHORT_ONLINE,
            "num_minibatches": 2,
            "algorithm": {"kl_coef": 0.05},
        },
    },
}


@pytest.fixture(scope="module")
def recipe(dtype: str) -> dict[str, Any]:
    return {**RECIPE, "model": tiny(dtype)}


@pytest.fixture(scope="module")
def straight(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("straight")
    run_to_the_end(recipe, path)
    return path


def test_killed_in_each_stage_and_resumed(recipe: dict[str, Any], straight: Path, tmp_path: Path):
    assert signal_at(recipe, tmp_path, "sft", 17, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "sft" / "final").exists()
    assert signal_at(recipe, tmp_path, "grpo", 6, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "grpo" / "final").exists()
    run_to_the_end(recipe, tmp_path)
    assert_same(recipe, straight, tmp_path)


def test_asked_to_stop_in_each_stage_and_resumed(recipe: dict[str, Any], straight: Path, tmp_path: Path):
    for stage, step in (("sft", 12), ("grpo", 3)):
        assert signal_at(recipe, tmp_path, stage, step, signal.SIGTERM) == 1  # KeyboardInterrupt, after a checkpoint
        [checkpoint] = (tmp_path / stage / "checkpoints").iterdir()
        done = len(steps(tmp_path / stage / "metrics.jsonl"))
        assert checkpoint.name == f"step_{done:06d}" and done >= step, "a checkpoint of this very step"
    run_to_the_end(recipe, tmp_path)
    assert_same(recipe, straight, tmp_path)

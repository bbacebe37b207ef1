"""Distillation over the teacher's whole vocabulary as a stage, in float32 and in bfloat16: it brings the student near,
and resumes exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tolerances
from pipelines import ON_NUMBERS, SHORT_ONLINE, assert_same, run_to_the_end, signal_at, steps, tiny

TAUGHT = {**SHORT_ONLINE, "method": "distillation", "teacher": "@sft"}
RECIPE: dict[str, Any] = {
    **ON_NUMBERS,
    "stages": {
        "sft": {"method": "sft", "data": {"demonstrations": 400}, "steps": 50, "optim": {"lr": 3e-3}},
        "full": {
            **TAUGHT,
            "model": {"name": "random:tiny"},
            "lora": None,
            "algorithm": {"divergence": "forward"},
            "steps": 30,
            "optim": {"lr": 5e-3},
        },
        "guided": {  # one of six answers is fixed data
            **TAUGHT,
            "model": "@full",
            "algorithm": {"divergence": "jsd"},
            "guidance": {"demonstrations": True},
            "num_minibatches": 2,
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


def test_the_divergence_from_the_teacher_falls(straight, dtype):
    rows = steps(straight / "full" / "metrics.jsonl")
    gaps = [row["loss/divergence"] for row in rows]
    assert gaps[0] == pytest.approx(rows[0]["loss"]) and fmean(gaps[-4:]) < 0.3 * gaps[0]
    gap = max(row["loss/sampler_gap"] for row in rows)
    assert gap < tolerances.mean_over_tokens(dtype), "the student that writes is the one that is taught"


def test_a_guide_gives_a_share_of_fixed_data(straight):
    rows = steps(straight / "guided" / "metrics.jsonl")
    assert all(row["guidance/trajectories"] == TAUGHT["prompts_per_step"] for row in rows)
    assert fmean(row["loss/divergence"] for row in rows) < 0.3, "it starts near its teacher, and stays"


def test_killed_and_resumed(recipe, straight, tmp_path):
    for stage, step in (("full", 8), ("guided", 6)):
        assert signal_at(recipe, tmp_path, stage, step, signal.SIGKILL) == -signal.SIGKILL
    run_to_the_end(recipe, tmp_path)
    assert_same(recipe, straight, tmp_path)

"""A whole GRPO run whose answers come from vLLM servers: in vLLM's form always, from vLLM itself where
AURIFY_VLLM_PYTHON names a Python that has it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest
from models import random_model
from pipelines import run, steps, tiny

from aurify.errors import UserError
from aurify.models.loading import save_model
from aurify.pipeline.recipe import build_recipe, build_stage_algorithm
from aurify.samplers import vllm_servers

TOY = Path(__file__).parents[1] / "toy.py"
FAKE = Path(__file__).parents[1] / "samplers" / "fake_vllm.py"
real = pytest.mark.skipif("AURIFY_VLLM_PYTHON" not in os.environ, reason="AURIFY_VLLM_PYTHON names no Python with vLLM")


def letters(sampler: dict[str, Any], num_steps: int, **stage: Any) -> dict[str, Any]:
    grpo = {"method": "grpo", "steps": num_steps, "sampling": {"max_tokens": 8}, "optim": {"lr": 3e-3}, **stage}
    return {
        "model": tiny("float32"),
        "plugins": [str(TOY)],
        "sampler": {"kind": "vllm_server", "max_context": 256, **sampler},
        "task": "toy_letters",
        "evaluation": {"num_tasks": 8, "sampling": {"max_tokens": 8}},
        "stages": {"grpo": grpo},
    }


def kill_a_server(metrics: Path, found: list[int]) -> None:
    """Once two steps are done."""
    while len(steps(metrics)) < 2:
        time.sleep(0.01)
    [servers] = vllm_servers.OPEN.values()
    process = servers.processes[0]
    assert process.running is not None
    found.append(httpx.get(f"{process.url}/stats", trust_env=False).json()["pid"])
    os.kill(found[0], signal.SIGKILL)


@pytest.mark.parametrize("push", ["adapter", "full"])
def test_a_run_with_two_servers_one_of_which_is_killed(tmp_path, caplog, push):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {FAKE} "$@"\n')
    python.chmod(0o755)
    options = {"python": str(python), "num_servers": 2, "push": push}
    lora = {"lora": {"rank": 8}} if push == "adapter" else {}
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_server, args=(tmp_path / "run/grpo/metrics.jsonl", killed), daemon=True)
    killer.start()
    results = run(letters({"options": options}, 25, **lora), tmp_path / "run")
    killer.join()
    rows, ledger = (steps(tmp_path / f"run/grpo/{name}.jsonl") for name in ("metrics", "ledger"))
    assert len(rows) == len(ledger) == 25
    assert all(row["loss/sampler_gap"] < 1e-4 for row in rows)
    for name in ("trajectories_failed", "trajectories_retried", "tokens_failed", "groups_mixing_versions"):
        assert not any(row[f"ledger/{name}"] for row in ledger)
    assert killed and "it is started again" in caplog.text
    if push == "full":  # the toy of test_pipeline.py, which trains all weights
        rewards = [row["reward/mean"] for row in rows]
        assert fmean(rewards[:3]) < 0.25 and fmean(rewards[-3:]) > 0.5
        assert results["grpo"]["before"] < 0.4 and results["grpo"]["after"] > 0.5


def test_the_difference_is_corrected_by_default():
    def build(sampler: dict[str, Any], **stage: Any) -> Any:
        recipe = build_recipe(letters({"options": {"num_servers": 1}}, 1, **stage) | {"sampler": sampler})
        return build_stage_algorithm(recipe.stages["grpo"], "stages.grpo")

    assert build({"kind": "vllm_server"}).correction.kind == "token_tis"
    assert build({"kind": "vllm_server"}, algorithm={"correction": {"kind": "none"}}).correction.kind == "none"
    assert build({"kind": "vllm_server"}, method="rloo").correction.kind == "token_tis"
    assert build({"kind": "in_process"}).correction.kind == "none"
    with pytest.raises(UserError, match=r"sampler.*'vllm_server' has no option 'num_server'; did you mean"):
        build({"kind": "vllm_server", "options": {"num_server": 1}})


@real
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("push", ["adapter", "full"])
def test_a_run_with_vllm_itself(tmp_path, push):
    lora = {"lora": {"rank": 8}} if push == "adapter" else {}
    options = {"push": push, "environment": {"VLLM_CPU_KVCACHE_SPACE": 1}}
    model = random_model(hidden_size=128, max_position_embeddings=256)  # heads of 32: vLLM takes none of 16
    save_model(model.module, model.tokenizer, tmp_path / "model")
    model_there = {"name": str(tmp_path / "model"), "dtype": "float32"}
    run(letters({"options": options}, 20, **lora) | {"model": model_there}, tmp_path)
    rows = steps(tmp_path / "grpo" / "metrics.jsonl")
    rewards = [row["reward/mean"] for row in rows]
    assert all(row["loss/sampler_gap"] < 1e-2 for row in rows)
    assert push == "adapter" or fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.1

"""A whole GRPO run whose answers come from vLLM servers: in vLLM's form always, from vLLM itself where
AURIFY_VLLM_PYTHON names a Python that has it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest
import torch
from models import random_model, run_sampler
from pipelines import run, steps, tiny
from vllm_stand_in import write_stand_in

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.models.loading import save_model
from aurify.models.model import load_model
from aurify.pipeline.recipe import build_recipe, build_stage_algorithm
from aurify.samplers import vllm_servers
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.open import SamplerOptions, open_sampler
from aurify.types import SamplingParams

TOY = Path(__file__).parents[1] / "toy.py"
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
    options = {"python": write_stand_in(tmp_path / "python"), "num_servers": 2, "push": push}
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


# ---------------------------------------------------------------------- vLLM itself


def make_folder(folder: Path) -> dict[str, Any]:
    """A model that vLLM takes: its heads have 32 numbers."""
    model = random_model(hidden_size=128, max_position_embeddings=256)
    save_model(model.module, model.tokenizer, folder)
    return {"name": str(folder), "dtype": "float32"}


def learn_letters(folder: Path, model: dict[str, Any], sampler: dict[str, Any], push: str) -> list[dict[str, Any]]:
    stage = {"lora": {"rank": 16, "alpha": 32}, "optim": {"lr": 3e-2}} if push == "adapter" else {}
    run(letters(sampler, 20, **stage) | {"model": model}, folder)
    return steps(folder / "grpo" / "metrics.jsonl")


def measure_rise(rows: list[dict[str, Any]]) -> float:
    rewards = [row["reward/mean"] for row in rows]
    return fmean(rewards[-5:]) - fmean(rewards[:5])


def count_answers(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


def kill_the_first(metrics: Path, found: dict[str, list[Any]]) -> None:
    """Once two steps are done, and answers of the third are on their way."""
    while len(steps(metrics)) < 2:
        time.sleep(0.01)
    [servers] = vllm_servers.OPEN.values()
    found["answers"] = [count_answers(process.url) for process in servers.processes]
    process = servers.processes[0]
    assert process.running is not None
    found["killed"] = [process.running.pid]
    os.killpg(process.running.pid, signal.SIGKILL)


@real
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("push", ["adapter", "full"])
def test_vllm_itself_answers_as_the_trainer_after_each_push(tmp_path, push):
    lora = LoraConfig(rank=8, alpha=16) if push == "adapter" else None
    engine = Engine(load_model(make_folder(tmp_path / "model")["name"], dtype="float32"), lora=lora)
    options = {"push": push, "environment": {"VLLM_CPU_KVCACHE_SPACE": 1}}
    sampler = open_sampler(SamplerOptions(kind="vllm_colocated", max_context=256, options=options), engine)
    generator, prompts = torch.Generator().manual_seed(0), [list(range(40 + k, 60 + k)) for k in range(4)]
    greedy = SamplingParams(max_tokens=16, temperature=0.0)

    async def body() -> None:
        seen = []
        for _ in range(3):
            await sampler.load_weights(engine.weights(), engine.version)
            inside = InProcessSampler(engine)
            expected = [(await inside.sample(prompt, greedy))[0].tokens for prompt in prompts]
            await inside.close()
            assert [(await sampler.sample(prompt, greedy))[0].tokens for prompt in prompts] == expected
            seen.append(expected)
            await sampler.rest()
            with torch.no_grad():
                for parameter in engine.trainable:
                    parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
            if engine.adapter is not None:
                engine.adapter.merge()
            engine.version += 1
        assert seen[0] != seen[1] != seen[2]

    run_sampler(sampler, body)


@real
@pytest.mark.vllm
@pytest.mark.slow
def test_two_servers_of_vllm_one_of_which_is_killed(tmp_path, caplog):
    model, found = make_folder(tmp_path / "model"), {}
    inside = learn_letters(tmp_path / "inside", model, {"kind": "in_process"}, "adapter")
    killer = threading.Thread(target=kill_the_first, args=(tmp_path / "run/grpo/metrics.jsonl", found), daemon=True)
    killer.start()
    options = {"num_servers": 2, "push": "adapter", "environment": {"VLLM_CPU_KVCACHE_SPACE": 1}}
    rows = learn_letters(tmp_path / "run", model, {"options": options}, "adapter")
    killer.join()
    assert found["killed"] and "it is started again" in caplog.text
    assert len(found["answers"]) == 2 and min(found["answers"]) > 0.2 * sum(found["answers"])  # both share the load
    ledger = steps(tmp_path / "run/grpo/ledger.jsonl")
    assert len(rows) == len(ledger) == 20
    for name in ("trajectories_failed", "tokens_failed", "groups_mixing_versions"):
        assert not any(row[f"ledger/{name}"] for row in ledger)
    assert all(row["loss/sampler_gap"] < 1e-2 for row in rows)
    print("rise with two servers", measure_rise(rows), "in process", measure_rise(inside))
    assert measure_rise(rows) > 0.1 and measure_rise(inside) > 0.1


@real
@pytest.mark.vllm
@pytest.mark.slow
def test_a_colocated_vllm_gets_whole_weights(tmp_path):
    """The CPU build says that it sleeps, and keeps its memory."""
    model = make_folder(tmp_path / "model")
    inside = learn_letters(tmp_path / "inside", model, {"kind": "in_process"}, "full")
    options = {"push": "full", "environment": {"VLLM_CPU_KVCACHE_SPACE": 1}}
    rows = learn_letters(tmp_path / "run", model, {"kind": "vllm_colocated", "options": options}, "full")
    assert all(row["loss/sampler_gap"] < 1e-2 for row in rows)
    print("rise, colocated", measure_rise(rows), "in process", measure_rise(inside))
    assert measure_rise(rows) > 0.1 and measure_rise(inside) > 0.1

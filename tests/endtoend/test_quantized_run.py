"""A recipe on a base in 4 bits, with moments in 8 bits: it learns, and killed and resumed it is the straight run."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from pipelines import ON_NUMBERS, SHORT_ONLINE, assert_same, run_to_the_end, signal_at, steps, tiny
from safetensors import safe_open

from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'aurify[quantize]'")


@pytest.fixture
def recipe(dtype: str) -> dict[str, Any]:
    sft = {"method": "sft", "data": {"demonstrations": 60}, "steps": 20, "checkpoint_every": 4}
    adam = {"lr": 1e-2, "kind": "adamw_8bit"}
    grpo = {"method": "grpo", "model": "@sft", **SHORT_ONLINE, "steps": 6, "algorithm": {"kl_coef": 0.05}}
    lora = {"rank": 32}  # from 4,096 numbers on a matrix has moments in 8 bits
    return {
        **ON_NUMBERS,
        "model": tiny(dtype) | {"quantize": "nf4"},
        "lora": lora,
        "stages": {"sft": {**sft, "optim": adam}, "grpo": {**grpo, "lora": lora, "optim": adam}},
    }


def test_it_learns_and_resumes_to_the_bit(recipe, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_to_the_end(recipe, straight)
    losses = [row["loss"] for row in steps(straight / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.3  # LoRA on the base as it is comes from 5.61 to 5.16, whose head is random
    info = json.loads((straight / "run_info.json").read_text())
    assert "nf4" in json.dumps(info)
    for stage in ("sft", "grpo"):
        with safe_open(straight / stage / "final" / "adapter_model.safetensors", "pt") as file:
            assert file.metadata()["quantize"] == "nf4"
    assert "weights, the base's in nf4" in (straight / "sft" / "events.log").read_text()

    assert signal_at(recipe, killed, "sft", 10, signal.SIGKILL) == -signal.SIGKILL
    assert signal_at(recipe, killed, "grpo", 5, signal.SIGKILL) == -signal.SIGKILL
    run_to_the_end(recipe, killed)
    assert_same(recipe, straight, killed)


def test_what_cannot_be_trained_is_refused_before_the_first_stage(recipe):
    for stage in ("sft", "grpo"):
        wrong = {**recipe, "stages": {**recipe["stages"], stage: {**recipe["stages"][stage], "lora": None}}}
        with pytest.raises(UserError, match=rf"stages.{stage}: model.quantize: weights in nf4 cannot be trained"):
            check_recipe(build_recipe(wrong))
    inherited = {**recipe, "model": recipe["model"] | {"quantize": None}}
    inherited["stages"] = {
        "sft": {**recipe["stages"]["sft"], "model": {"quantize": "nf4"}},
        "grpo": {**recipe["stages"]["grpo"], "lora": None},
    }
    with pytest.raises(UserError, match=r"stages.grpo: model.quantize: weights in nf4 cannot be trained"):
        check_recipe(build_recipe(inherited))
    inherited["stages"]["grpo"] = {**recipe["stages"]["grpo"], "model": {"name": "@sft", "quantize": "int8"}}
    with pytest.raises(UserError, match=r"'int8', but '@sft' is trained on a base in nf4; give that"):
        check_recipe(build_recipe(inherited))
    with pytest.raises(UserError, match=r"'model.quantize' is 'nf5'.*did you mean 'nf4'"):
        build_recipe({**recipe, "model": {"name": "random:tiny", "quantize": "nf5"}})

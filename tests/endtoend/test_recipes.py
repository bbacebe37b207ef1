"""Every recipe for a real model takes a step in each of its stages, in float32 and in bfloat16: with a random model (of
the same kind and quantised as asked, where it names one of a hub), little data and a task whose rewards differ from the
first answer on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from medquad import stand_in_for_medquad
from pipelines import run, steps, tiny
from stand_in_hub import MODELS, open_hub_rows, write_model

from aurify.config import load_config
from aurify.rows import sources

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))  # those of recipes/tiny run in other tests, all of their steps
FEW = {"num_tasks": 16, "num_heldout": 4, "group_size": 6, "sampling": {"max_tokens": 64}}  # some come to an end


def smallest(stage: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    small = {**stage, "steps": 1, "engine": {**engine, "micro_batch_tokens": 512}}
    small.pop("epochs", None)
    if "data" in stage:
        less: dict[str, Any] = {"demonstrations": 8, "sample": FEW}
        small["data"] = {name: value and less.get(name, value) for name, value in stage["data"].items()}
        return small | {"batch_size": 2}
    return small | {"prompts_per_step": 2, "completions_per_prompt": 3, "sampling": {"max_tokens": 12}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_one_step_of_every_stage(path, tmp_path, dtype, monkeypatch):
    stand_in_for_medquad(tmp_path / "medquad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "open_hub_rows", open_hub_rows)
    values = load_config(path)
    model = values["model"] if isinstance(values["model"], dict) else {"name": values["model"]}
    if "quantize" in model:
        pytest.importorskip("bitsandbytes")
    small = tiny(dtype)
    if model["name"] in MODELS:
        write_model(model["name"], tmp_path / "model", tiny=True)
        small["name"] = str(tmp_path / "model")
    values |= {"model": model | small, "task": "toy_letters", "plugins": [str(ROOT / "tests" / "toy.py")]}
    values["evaluation"] = {"num_tasks": 2, "sampling": {"max_tokens": 4}}
    values["stages"] = {name: smallest(stage, values.get("engine", {})) for name, stage in values["stages"].items()}
    results = run(values, tmp_path)
    assert list(results) == list(values["stages"])
    for stage in results:
        [row] = steps(tmp_path / stage / "metrics.jsonl")
        assert math.isfinite(row["loss"]) and row["optim/grad_norm"] > 0
        assert results[stage]["after"] is not None

"""From values to stages, and what is refused before anything runs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from aurify.errors import UserError
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.check import check_recipe
from aurify.pipeline.plan import describe_stage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, build_recipe, build_stage_renderer
from aurify.pipeline.references import find_stage_references

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("**/*.yaml") if path.parent.name != "eval")  # suites of another kind
CHAIN: dict[str, Any] = {
    "model": "random:tiny",
    "task": "largest_number",
    "stages": {
        "sft": {"method": "sft", "data": {"demonstrations": 8}, "steps": 2},
        "reward": {"method": "reward_model", "model": "@sft", "data": {"sample": {"num_tasks": 4}}},
        "dpo": {"method": "dpo", "model": "@sft", "data": {"stage": "@reward"}},
        "grpo": {"method": "grpo", "model": "@dpo", "reward": "@reward"},
    },
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """The chain with one value changed; None removes it."""
    values = deepcopy(CHAIN)
    inner, (*path, last) = values, place.split(".")
    for key in path:
        inner = inner[key]
    if value is None:
        inner.pop(last, None)
    else:
        inner[last] = value
    return values


def test_the_chain_is_fine():
    recipe = build_recipe(CHAIN)
    plan = check_recipe(recipe)
    assert [type(stage) for stage in recipe.stages.values()] == [OfflineStage] * 3 + [OnlineStage]
    assert find_stage_references(recipe.stages["grpo"]) == {"model": "dpo", "reward": "reward"}
    assert [describe_stage(stage)["model"] for stage in plan.stages.values()] == ["random:tiny", "@sft", "@sft", "@dpo"]


def test_stages_inherit_what_they_do_not_say():
    values = changed("stages.dpo.lora", {"rank": 4})
    values |= {"lora": {"rank": 2}, "model": {"name": "random:tiny", "dtype": "float32"}}
    values["stages"]["sft"] |= {"lora": None, "task": {"name": "sorting", "count": 3}}
    stages = build_recipe(values).stages
    assert [stage.lora and stage.lora.rank for stage in stages.values()] == [None, 2, 4, 2]
    assert [stage.task["name"] for stage in stages.values()] == ["sorting"] + ["largest_number"] * 3
    assert {stage.model.dtype for stage in stages.values()} == {"float32"}


def test_what_the_renderer_is_told_holds_for_every_stage_that_does_not_say_otherwise():
    values = changed("stages.sft.tools_as_text", False) | {"tools_as_text": True, "template_options": {"messages": 1}}
    stages = build_recipe(values).stages
    assert [stage.tools_as_text for stage in stages.values()] == [False, True, True, True]
    assert all(stage.template_options == {"messages": 1} for stage in stages.values())
    with pytest.raises(UserError, match=r"template_options: .* reads no 'messages'"):
        build_stage_renderer(stages["sft"], byte_tokenizer())
    plain = build_recipe(changed("stages.sft.tools_as_text", True)).stages
    assert [build_stage_renderer(stage, byte_tokenizer()).tools_as_text for stage in plain.values()] == [True] + [
        False
    ] * 3


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        ("stages", {}, ["at least one stage"]),
        ("stages", [{"method": "sft"}], ["stages: it is a list", "stages have names"]),
        ("stages.stf", {"steps": 2}, ["stages.stf", "no method", "did you mean 'sft'"]),
        ("stages.grpo.reward", "number_match", ["stages.grpo.reward", "no model", "reward: number_match"]),
        ("reward", "number_match", ["'reward'", "here that is task.reward"]),
        ("stages.sft.method", "sff", ["stages.sft", "sff", "did you mean 'sft'"]),
        ("stages.sft.method", None, ["stages.sft", "no method"]),
        ("stages.sft.stepps", 3, ["stages.sft.stepps", "did you mean 'steps'"]),
        ("modle", "x", ["modle", "did you mean 'model'"]),
        ("stages.sft.steps", 0, ["stages.sft", "steps", "0", "at least 1"]),
        ("stages.sft.steps", "many", ["stages.sft.steps", "many", "integer"]),
        ("stages.sft.epochs", 2, ["stages.sft", "steps (2)", "epochs (2.0)", "one of them"]),
        ("stages.sft.data", {}, ["stages.sft.data", "no source", "exactly one"]),
        ("stages.sft.data", {"mix": [{"path": "a"}]}, ["stages.sft.data", "mix: 1 sources", "two or more"]),
        ("stages.sft.data", {"mix": [{"path": "a"}] * 2, "max_rows": 3}, ["stages.sft.data", "max_rows", "mix"]),
        ("stages.sft.data", {"mix": [{"path": "a", "weight": 0}] * 2}, ["stages.sft.data.mix.0", "weight: 0"]),
        ("stages.sft.data", {"demonstrations": 3, "filters": ["x"]}, ["stages.sft.data", "filters", "no effect"]),
        ("stages.sft.data", {"path": "recipes", "filters": ["at_lest"]}, ["unknown dataset 'at_lest'", "at_least"]),
        ("stages.sft.data.path", "x.jsonl", ["path and demonstrations", "exactly one"]),
        ("stages.sft.lora", {"rank": 0}, ["stages.sft.lora.rank: 0", "at least 1"]),
        ("stages.sft.optim", {"lr": -1.0}, ["stages.sft.optim", "lr", "-1.0"]),
        ("stages.sft.algorithm", {"beta": 1}, ["stages.sft.algorithm.beta", "unknown key"]),
        ("stages.dpo.algorithm", {"beta": -1}, ["stages.dpo.algorithm.beta: -1", "above 0"]),
        ("stages.grpo.data", {"demonstrations": 3}, ["stages.grpo.data", "unknown key"]),
        ("stages.grpo.sampling", {"temperature": 0}, ["stages.grpo", "temperature", "greedy"]),
        ("stages.grpo.num_minibatches", 9, ["stages.grpo", "num_minibatches: 9", "8 groups"]),
        ("stages.grpo.reward", "@sft", ["stages.grpo", "reward: '@sft'", "no reward model"]),
        ("stages.grpo.reward", "@rewards", ["stages.grpo", "'@rewards' does not exist", "@reward"]),
        ("stages.grpo.model", "@reward", ["stages.grpo", "'@reward' is a reward model"]),
        ("stages.sft.model", "@dpo", ["stages.sft", "'@dpo' comes later", "this is the first"]),
        ("stages.dpo.data.stage", "reward", ["data.stage", "'@reward'"]),
        ("stages.dpo.data.stage", "@sft", ["stages.dpo", "'@sft'", "no preference pairs"]),
        ("stages.dpo.data", {"demonstrations": 3}, ["stages.dpo", "demonstrations", "preference pairs"]),
        ("stages.sft.data", {"sample": {}}, ["stages.sft", "not from preference pairs"]),
        ("stages.sft.data", {"path": "nothing.jsonl"}, ["stages.sft", "nothing.jsonl", "no file"]),
        ("stages.sft.task", {"name": "largest_numbr"}, ["stages.sft", "did you mean 'largest_number'"]),
        ("stages.sft.task", {"name": "largest_number", "cout": 3}, ["stages.sft", "did you mean 'count'"]),
        ("task", None, ["stages.sft", "set `task:`"]),
        ("model", None, ["stages.sft.model", "no model"]),
        ("model", "smollm3", ["stages.sft", "smollm3"]),
    ],
)
def test_mistakes_are_named(place, value, parts):
    with pytest.raises(UserError) as caught:
        check_recipe(build_recipe(changed(place, value)))
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_a_stage_name_is_a_folder_name():
    values = changed("stages.sft", None)
    values["stages"]["../sft"] = CHAIN["stages"]["sft"]
    with pytest.raises(UserError, match=r"stages\.\.\./sft: .* folder"):
        build_recipe(values)

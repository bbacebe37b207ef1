"""The memory plan of a recipe: shown before anything is loaded, what makes it fit, and beside what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config
from aurify.errors import UserError
from aurify.pipeline import card as cards
from aurify.pipeline.card import GIB, RESERVED, Card, choose_memory_card, read_memory_size
from aurify.pipeline.check import check_recipe
from aurify.pipeline.fit import Change, apply_memory_changes, suggest_memory_changes
from aurify.pipeline.memory import plan_stage_memory
from aurify.pipeline.recipe import build_recipe

RECIPE = """
name: fits
model: {name: random:tiny, dtype: float32}
task: {name: largest_number, num_heldout: 8}
evaluation: {num_tasks: 4, sampling: {max_tokens: 4}}
lora: {rank: 8, alpha: 8}
stages:
  sft: {method: sft, data: {demonstrations: 16}, steps: 1, batch_size: 4}
  grpo: {method: grpo, model: "@sft", steps: 1, prompts_per_step: 4, completions_per_prompt: 8,
         sampling: {max_tokens: 256}}
"""


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def make_plan(*overrides: str):
    return check_recipe(build_recipe(load_config("recipe.yaml", overrides)), keep=False)


def small_card(size: int) -> Card:
    return Card("a small one", "cuda", size, 2, present=False)


def run_command(*arguments: str):
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_plan_is_shown_with_each_part_and_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("aurify.pipeline.start.load_model", None)
    result = run_command("plan", "recipe.yaml", "--card", "8GB")
    assert result.exit_code == 0, result.output
    shown = result.output
    for part in ("weights", "adapter", "optimiser", "gradients", "activations", "head", "keys and values", "sampler"):
        assert f" {part} " in shown.replace("\n", " \n "), part
    assert re.search(r"sft: peak [\d.]+ MiB \(\w+\) of 7.40 GiB on a card of 8 GiB", shown)
    assert "a copy of the adapter it begins with" in shown  # of grpo, which goes on with that of sft
    assert "if all answers are as long as they may be" in shown and not Path("runs").exists()


def test_the_dry_run_has_a_line_a_stage():
    result = run_command("train", "recipe.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"(?m)^(sft|grpo): peak .* on the RAM of this machine", result.output)) == 2


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_what_is_offered_makes_it_fit(share):
    plan = make_plan("stages.grpo.engine={micro_batch_tokens: 4096, checkpointing: false}")
    whole = plan_stage_memory(plan, plan.stages["grpo"], small_card(GIB)).peak
    small = small_card(round(share * whole))
    assert not plan_stage_memory(plan, plan.stages["grpo"], small).fits
    changes, changed = suggest_memory_changes(plan, plan.stages["grpo"], small)
    recipe, overrides = apply_memory_changes(plan.recipe, "grpo", changes)
    assert changes and changed.fits and changed.peak <= small.size
    # the overrides say the same in YAML as the changes do in the recipe, and the plan made anew agrees
    again = make_plan("stages.grpo.engine={micro_batch_tokens: 4096, checkpointing: false}", *overrides)
    assert again.recipe == recipe
    assert plan_stage_memory(again, again.stages["grpo"], small).peak == changed.peak
    for left_out in range(len(changes)):  # none is needless
        fewer = [change for number, change in enumerate(changes) if number != left_out]
        other = check_recipe(apply_memory_changes(plan.recipe, "grpo", fewer)[0], keep=False)
        assert not plan_stage_memory(other, other.stages["grpo"], small).fits


def test_what_stages_share_at_the_top_is_changed_at_the_top():
    plan = make_plan("engine={micro_batch_tokens: 4096}")
    changes = [Change("lora", "rank", 4), Change("engine", "checkpointing", True)]
    recipe, overrides = apply_memory_changes(plan.recipe, "grpo", changes)
    assert overrides == ["lora.rank=4", "engine.checkpointing=true"]
    assert [(s.lora.rank, s.lora.alpha, s.engine.checkpointing) for s in recipe.stages.values()] == [(4, 8, True)] * 2
    assert make_plan("engine={micro_batch_tokens: 4096}", *overrides).recipe == recipe


def test_all_weights_are_offered_an_adapter():
    plan = make_plan("lora=null")
    whole = plan_stage_memory(plan, plan.stages["sft"], small_card(GIB))
    held = sum(part.size for part in whole.parts if part.name in ("weights", "optimiser", "gradients"))
    changes, changed = suggest_memory_changes(plan, plan.stages["sft"], small_card(round(0.75 * held)))
    assert any(
        override.endswith("lora={rank: 16}") for override in apply_memory_changes(plan.recipe, "sft", changes)[1]
    )
    assert changed.peak < whole.peak


def test_a_plan_that_does_not_fit_says_what_to_change_and_fails(monkeypatch):
    monkeypatch.setattr(cards, "RESERVED", 0)
    result = run_command(
        "plan", "recipe.yaml", "stages.grpo.engine={micro_batch_tokens: 4096, checkpointing: false}", "--card", "0.02"
    )
    assert result.exit_code == 1, result.output
    assert "grpo: it does not fit; it fits with" in result.output and "stages.grpo.engine." in result.output


@pytest.fixture
def little_ram(monkeypatch):
    """Of which the tiny model needs most."""
    plan = make_plan()
    needed = max(
        plan_stage_memory(plan, stage, choose_memory_card(stage.options.model)).peak for stage in plan.stages.values()
    )
    limit = round(0.6 * needed)
    real = cards.choose_memory_card
    for module in ("card", "fit", "stage"):
        name = f"aurify.pipeline.{module}.choose_memory_card"
        monkeypatch.setattr(name, lambda model, wish=None: replace(real(model, wish), size=limit))
    return limit


def test_memory_auto_changes_the_recipe_and_the_run_keeps_what_it_ran(little_ram):
    plan = make_plan("memory=auto")
    assert plan.fitted and plan.recipe != make_plan().recipe and not make_plan().fitted
    for stage in plan.stages.values():
        assert plan_stage_memory(plan, stage, cards.choose_memory_card(stage.options.model)).fits
    shown = run_command("train", "recipe.yaml", "memory=auto", "--dry-run").output
    assert all(f"memory: auto sets {override}" in shown for override in plan.fitted)
    result = run_command("train", "recipe.yaml", "memory=auto")
    assert result.exit_code == 0, result.output
    [run] = Path("runs").iterdir()
    assert build_recipe(load_config(run / "recipe.yaml")) == plan.recipe


def test_memory_auto_leaves_alone_what_fits():
    assert make_plan("memory=auto").recipe.stages == make_plan().recipe.stages


def test_a_stage_compares_its_plan_with_the_measured_peak():
    result = run_command("train", "recipe.yaml")
    assert result.exit_code == 0, result.output
    [run] = Path("runs").iterdir()
    for name, stage in json.loads((run / "results.json").read_text()).items():
        memory = stage["memory"]
        assert memory["peak"] <= sum(memory["parts"].values()) and memory["peak"] > 0
        assert memory["measured"] >= 0
        assert re.search(r"memory: planned [\d.]+ MiB \(\w+\); measured ", (run / name / "events.log").read_text())
        assert name in result.output and "memory: planned" in result.output


@pytest.mark.parametrize(
    ("wish", "gib"), [("8GB", 8), ("8", 8), ("5.5 GiB", 5.5), ("rtx4090", 24), ("RTX 3060", 12), ("NVIDIA H100", 80)]
)
def test_cards_by_size_and_by_name(wish, gib):
    assert read_memory_size(wish) == gib * GIB
    config = make_plan().stages["sft"].options.model
    assert choose_memory_card(config, wish).size == gib * GIB - RESERVED
    assert choose_memory_card(config, wish).width == 4  # the recipe asks for float32


@pytest.mark.parametrize("wish", ["rtx4091", "much", "0.5GB"])
def test_other_cards_are_refused(wish):
    with pytest.raises(UserError, match="--card: "):
        read_memory_size(wish)

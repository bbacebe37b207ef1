"""Every recipe that comes along passes `--dry-run`, with the configuration of the model that it names and rows in the
form of the data that it names. Those for GPUs say what they take, and the docs as well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from medquad import stand_in_for_medquad
from stand_in_hub import ROOT, hub_in_folder, load_script
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.cli.names import list_recipes
from aurify.config import load_config
from aurify.pipeline.recipe import build_recipe

RECIPES = list_recipes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with hub_in_folder(tmp_path_factory.mktemp("hub")):
        yield


@pytest.fixture
def dry_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in_for_medquad(tmp_path / "medquad")

    def run(recipe: str, *overrides: str):
        if "qlora" in recipe:
            pytest.importorskip("bitsandbytes")
        result = CliRunner().invoke(app, ["train", recipe, "--dry-run", *overrides])
        assert not Path("runs").exists()
        return result.exit_code, " ".join(result.output.split())

    return run


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_its_dry_run(dry_run, recipe):
    code, said = dry_run(recipe)
    assert code == 0 and "The recipe is fine" in said, said
    assert build_recipe(load_config(ROOT / "recipes" / f"{recipe}.yaml")).name != "run"  # its runs bear its name
    reasons = re.findall(r"rows rejected: (?:held out: )?(.{30})", said)
    assert all("chosen and rejected are the" in reason for reason in reasons), said  # a few such pairs are in the rows


def test_no_recipe_is_left_out():
    """What lies in base/ is a part of others, and belongs to one of them; in eval/ are suites for `aurify eval`."""
    found = {path.relative_to(ROOT / "recipes").as_posix(): path for path in (ROOT / "recipes").rglob("*.yaml")}
    files = {name: path for name, path in found.items() if not name.startswith("eval/")}
    bases = {name for name in files if name.startswith("base/")}
    assert {f"{name}.yaml" for name in RECIPES} == files.keys() - bases
    used = "\n".join(files[name].read_text() for name in files.keys() - bases)
    assert not [name for name in bases if name not in used]


@pytest.mark.parametrize(
    ("recipe", "override", "complaint"),
    [
        ("mistral-7b-qlora-sft", "stages.sft.max_lenght=512", "'stages.sft.max_lenght'; did you mean 'max_length'"),
        ("mistral-7b-qlora-sft", "stages.sft.data.split=train_sft", "data set 'trl-lib/Capybara' has no split"),
        ("mistral-7b-qlora-dpo", "stages.dpo.data.path=trl-lib/Capybara", "stages.dpo: "),
        ("qwen2.5-7b-qlora-grpo", "template_options={enable_thinking: false}", "reads no 'enable_thinking'"),
        ("rag-medquad", "task.prompt_column=question", "medquad/train.jsonl"),
        ("smollm2-sft", "model=HuggingFaceTB/SmolLM2-136M-Instruct", "it is not in the local cache"),
    ],
)
def test_a_wrong_key_column_split_or_model_is_seen(dry_run, recipe, override, complaint):
    code, said = dry_run(recipe, override)
    assert code == 2 and complaint in said, said


def test_the_plans_in_the_recipes_and_in_the_docs_are_those_of_now(hub):
    pytest.importorskip("bitsandbytes")
    script = load_script("recipe_plans")
    planned = list(script.plan_recipes())
    assert {name for name, _, _ in planned} == {name for name in RECIPES if name.startswith(script.FAMILIES)}
    for name, card, memory in planned:
        assert memory.fits and script.write_command(name, card, memory) in RECIPES[name].read_text(encoding="utf-8")
    assert script.make_table() in (ROOT / "docs" / "memory-plan.md").read_text(encoding="utf-8")

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurify.cli import names
from aurify.cli.names import NamedModel, find_kb, find_model, find_recipe, find_run
from aurify.errors import UserError
from aurify.tracking.run_folder import RunFolder

TEXT = {"architectures": ["LlamaForCausalLM"]}
SCORES = {"architectures": ["LlamaForSequenceClassification"]}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs; the second has the finished stages sft, grpo and reward."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    for run in ("20260101_120000_aaaa", "20260102_120000_bbbb"):
        (folder / run).mkdir(parents=True)
        (folder / run / "recipe.yaml").write_text("name: x\ntask: sorting\n")
    stages = {"sft": TEXT, "grpo": TEXT, "dpo": None, "reward": SCORES}
    (folder / "20260102_120000_bbbb" / "results.json").write_text(json.dumps({stage: {} for stage in stages}))
    for stage, config in stages.items():
        if config is None:  # not finished
            continue
        final = folder / "20260102_120000_bbbb" / stage / "final"
        final.mkdir(parents=True)
        (final / "config.json").write_text(json.dumps(config))
    (folder / "notes").mkdir()  # no run
    return folder


@pytest.mark.parametrize("name", ["last", "20260102_120000_bbbb", "20260102", "runs/20260102_120000_bbbb"])
def test_a_run_by_every_name(runs, name):
    assert find_run(name, runs).resolve() == runs / "20260102_120000_bbbb"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2026", "run '2026' could be 20260101_120000_aaaa, 20260102_120000_bbbb"),
        ("20260102_120000_bbbc", "did you mean '20260102_120000_bbbb'"),
        ("notes", "there is no run 'notes'"),
    ],
)
def test_a_run_that_is_not_one(runs, name, expected):
    with pytest.raises(UserError, match=expected):
        find_run(name, runs)


def test_the_model_of_a_run_is_its_last_finished_stage_that_can_write(runs):
    run = runs / "20260102_120000_bbbb"
    for name in ("last", "20260102"):
        assert find_model(name, runs) == NamedModel(str(run / "grpo" / "final"), run, "grpo")
    assert find_model("last:sft", runs) == NamedModel(str(run / "sft" / "final"), run, "sft")
    assert find_model("last", runs).recipe() == {"name": "x", "task": "sorting"}


@pytest.mark.parametrize("name", ["random:tiny", "owner/name", "smollm2-135m-instruct", "model.gguf"])
def test_other_names_are_left_to_the_engine(runs, name, caplog):
    caplog.set_level("INFO", "aurify")
    assert find_model(name, runs) == NamedModel(name) and not caplog.messages


def test_a_bare_name_may_have_been_meant_for_a_run(runs, caplog):
    caplog.set_level("INFO", "aurify")
    assert find_model("nosuch", runs) == NamedModel("nosuch")
    assert caplog.messages == [f"no run in {runs}/ begins with 'nosuch'; looking for a model of that name"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("last:reward", "stage 'reward' of run 20260102_120000_bbbb is a reward model"),
        ("last:grop", "no finished stage 'grop'; did you mean 'grpo'"),
        ("20260101", "run 20260101_120000_aaaa has no finished stage with a model yet"),
        ("runs/20260102_120000_bbbb/reward/final", "is a reward model"),
    ],
)
def test_models_that_cannot_write(runs, name, expected):
    with pytest.raises(UserError, match=expected):
        find_model(name, runs)


def test_an_adapter_with_a_scalar_head_is_a_reward_model(runs):
    final = runs / "20260102_120000_bbbb" / "grpo" / "final"
    (final / "config.json").unlink()
    (final / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS"}))
    assert find_model("last", runs).stage == "sft"


def test_recipes_that_come_along_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "shipped"
    (shipped / "tiny").mkdir(parents=True)
    (shipped / "tiny" / "sft.yaml").write_text("name: shipped")
    monkeypatch.setattr(names, "SHIPPED", (tmp_path / "nowhere", shipped))
    for name in ("tiny/sft", "tiny/sft.yaml", "recipes/tiny/sft.yaml"):
        assert find_recipe(name) == shipped / "tiny" / "sft.yaml"
    assert str(find_recipe("mine.yaml")) == "mine.yaml"
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "sft.yaml").write_text("name: own")
    assert str(find_recipe("tiny/sft.yaml")) == "tiny/sft.yaml"  # a file of the user's goes first


def test_the_quickstart_is_there():
    assert find_recipe("quickstart").is_file()


def test_a_knowledge_base_is_a_name_under_kb_or_a_folder_with_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("kb/notes", "elsewhere/papers"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "settings.json").write_text("{}")
    assert find_kb("notes") == Path("kb/notes")
    assert find_kb("./elsewhere/papers") == Path("elsewhere/papers")
    assert find_kb("fresh", new=True) == Path("kb/fresh")
    with pytest.raises(UserError, match=r"no knowledge base at kb/note .*did you mean 'notes'"):
        find_kb("note")
    with pytest.raises(UserError, match="--kb is empty"):
        find_kb("")


def test_a_run_that_is_running_is_waited_for_and_not_resumed(runs, monkeypatch):
    monkeypatch.setattr(RunFolder, "status", lambda self, stage: "running")
    (runs / "20260101_120000_aaaa" / "recipe.yaml").write_text("stages: {sft: {method: sft}}\n")
    with pytest.raises(UserError, match="it is running: wait"):
        find_model("20260101_120000_aaaa", runs)
    monkeypatch.undo()
    with pytest.raises(UserError, match="train --resume"):
        find_model(str(runs / "20260101_120000_aaaa"), runs)

"""The folder of a run."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from aurify.config import load_config
from aurify.errors import UserError
from aurify.tracking.run_folder import RunFolder

RECIPE = {"name": "größe", "seed": 7, "stages": {"sft": {"method": "sft"}}}


def test_a_new_run_holds_its_recipe_and_what_it_runs_on(tmp_path):
    folder = RunFolder.create(tmp_path / "runs", RECIPE)
    assert re.fullmatch(r"\d{8}_\d{6}_[0-9a-f]{4}", folder.name)
    assert yaml.safe_load(folder.recipe.read_text(encoding="utf-8")) == RECIPE
    info = json.loads((folder.path / "run_info.json").read_text())
    assert info["seed"] == 7 and info["versions"].keys() >= {"aurify", "torch", "transformers"}
    assert info["hardware"]["cores"] >= 1 and info["hardware"]["memory_gb"] > 0 and "git" in info


def test_the_recipe_reads_back_the_same_even_where_a_text_looks_like_an_interpolation(tmp_path):
    recipe = RECIPE | {
        "task": {"name": "jsonl", "system": "Fill in ${name}, \\\\${x}", "pattern": r"\d+\$"},
        "lr": 1e-05,
    }
    assert load_config(RunFolder.create(tmp_path, recipe).recipe) == recipe


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path):
    assert len({RunFolder.create(tmp_path, RECIPE).path for _ in range(5)}) == 5


def test_a_folder_without_a_recipe_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no run folder \(it has no recipe.yaml\)"):
        RunFolder.open(tmp_path)


def test_results_of_stages_add_up_and_keep_their_order(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    assert folder.results() == {}
    folder.record("sft", status="running", before=0.1)
    folder.record("grpo", status="running")
    folder.record("sft", status="finished", after=0.3)
    again = RunFolder.open(folder.path).results()
    assert again == {"sft": {"status": "finished", "before": 0.1, "after": 0.3}, "grpo": {"status": "running"}}
    assert list(again) == ["sft", "grpo"]


def test_looking_at_a_stage_makes_no_folder(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    assert not folder.stage_folder("sft").path.exists()
    assert folder.stage("sft").path.is_dir() and folder.stage("sft").name == "sft"


def test_how_a_stage_ends_is_recorded_with_its_error(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    assert folder.status("sft") == "not started"
    with pytest.raises(ZeroDivisionError), folder.lock(), folder.attempt("sft"):
        assert folder.status("sft") == "running"
        1 / 0  # noqa: B018
    assert folder.status("sft") == "failed"
    error = folder.results()["sft"]["error"]
    assert error["text"] == "ZeroDivisionError: division by zero" and "1 / 0" in error["traceback"]
    events = folder.stage_folder("sft").events.read_text()
    assert "failed: ZeroDivisionError: division by zero" in events and "1 / 0" in events
    with pytest.raises(KeyboardInterrupt), folder.lock(), folder.attempt("sft"):
        raise KeyboardInterrupt
    assert folder.status("sft") == "interrupted" and "error" not in folder.results()["sft"]


def test_an_error_has_the_mend_and_one_of_the_user_no_traceback(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    for raised in (MemoryError("no room"), UserError("rows.jsonl: give more rows")):
        with pytest.raises(type(raised)), folder.attempt("sft"):
            raise raised
        error = folder.results()["sft"]["error"]
        assert "traceback" not in error
        if isinstance(raised, UserError):
            assert error == {"text": "rows.jsonl: give more rows"}
        else:
            assert "lower engine.micro_batch_tokens" in error["mend"]


def test_a_run_whose_process_has_gone_was_killed(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    folder.record("sft", status="running")
    assert folder.status("sft") == "killed"
    with folder.lock():
        assert folder.status("sft") == "running"


def test_a_folder_with_nothing_to_go_on_from_has_no_work(tmp_path):
    folder = RunFolder.create(tmp_path, RECIPE)
    folder.record("sft", status="failed")
    folder.stage("sft").log("failed")
    folder.stage("sft").tensorboard.mkdir()
    assert not folder.has_work()
    folder.record("sft", before=0.5)
    assert folder.has_work()
    folder.record("sft", before=None)
    folder.stage("sft").metrics.write_text('{"step": 1}\n')
    assert folder.has_work()

"""The commands on one tiny run, as a person would give them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_recipe import RECIPE
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe and one finished run of it."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "small.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = output("train", "small.yaml", "stages.sft.steps=1")
    assert "Chat with it: aurify chat" in text
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def output(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def last_run() -> Path:
    return sorted(Path("runs").iterdir())[-1]


def metrics(stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (last_run() / stage / "metrics.jsonl").read_text().splitlines()]


def test_training_leaves_both_models_the_overridden_steps_and_a_report():
    assert len(metrics("sft")) == 1
    assert (last_run() / "sft" / "final" / "model.safetensors").is_file()
    assert (last_run() / "grpo" / "final" / "adapter_model.safetensors").is_file()
    assert "grpo" in (last_run() / "report.html").read_text()


def test_a_dry_run_shows_the_plan_and_what_is_read_and_leaves_nothing():
    num_runs = len(list(Path("runs").iterdir()))
    text = output("train", "small.yaml", "--dry-run")
    assert "16 demonstrations" in text
    assert "<|im_start|>assistant" in text
    assert len(list(Path("runs").iterdir())) == num_runs


def test_resuming_a_finished_run_trains_nothing():
    text = output("train", "--resume", "last")
    assert text.count("finished already") == 2
    assert len(metrics("sft")) == 1


def test_runs_lists_the_run_with_its_numbers():
    text = output("runs")
    assert last_run().name in text
    assert "small" in text and "finished" in text and "→" in text
    assert "(4)" in " ".join(text.split()), "of how many the numbers are means"


def test_training_tells_its_numbers_with_their_error_and_on_what_it_ran():
    events = (last_run() / "sft" / "events.log").read_text()
    assert re.search(r"number_match before: \d\.\d{3}( ±\d\.\d{3})? \(4\)", events)
    stages = json.loads((last_run() / "run_info.json").read_text())["stages"]
    assert {stages[name]["dtype"] for name in ("sft", "grpo")} <= {"float32", "bfloat16"}
    assert len({stages[name]["seed"] for name in ("sft", "grpo")}) == 2


def test_report_is_made_anew():
    page = last_run() / "report.html"
    page.unlink()
    assert output("report").strip() == str(page)
    assert page.is_file()


def test_a_report_that_fails_does_not_fail_the_run(monkeypatch):
    def broken(run: Path) -> Path:
        raise KeyError("reward")

    monkeypatch.setattr("aurify.report.report.write_report", broken)
    result = CliRunner().invoke(app, ["train", "--resume", "last"])
    assert result.exit_code == 0
    assert "The report could not be written (KeyError: 'reward'); `aurify report" in result.stderr


def test_eval_takes_the_task_from_the_run_and_says_the_same_as_training():
    [found] = json.loads(output("eval", "last", "--json", "--num-tasks", "4"))["results"]
    results = json.loads((last_run() / "results.json").read_text())
    assert found["task"] == "largest_number"
    assert (found["num"], found["value"]) == (4, results["grpo"]["after"])
    assert (found["measure"], found["error"]) == ("number_match", results["grpo"]["details_after"]["error"])


def test_eval_samples_as_the_evaluation_of_the_run_does(monkeypatch):
    """It dropped stop and top_p. What the command line says comes first."""
    from aurify.evaluation import evaluate as module

    seen: list[Any] = []

    async def spied(taskset, sampler, renderer, params, **options):
        seen.append((params, options["limits"].turns, options["options"].step_seconds))
        return await plain(taskset, sampler, renderer, params, **options)

    plain = module.evaluate
    monkeypatch.setattr(module, "evaluate", spied)
    changed = last_run() / "recipe.yaml"
    text = changed.read_text()
    values = load_config(changed)
    values["evaluation"]["sampling"] |= {"temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"], "min_p": 0.01}
    values["stages"]["grpo"] |= {"limits": {"turns": 3}}
    values["rollouts"] = {"step_seconds": 7.0}
    try:
        changed.write_text(json.dumps(values))
        output("eval", "last", "--num-tasks", "1")
        output("eval", "last", "--num-tasks", "1", "--temperature", "0", "--stop", "c", "--top-p", "0.5",
               "--max-tokens", "3", "--max-turns", "2")  # fmt: skip
    finally:
        changed.write_text(text)
    (params, turns, seconds), (other, other_turns, _) = seen
    assert (params.max_tokens, params.temperature, params.top_p, params.min_p) == (2, 0.5, 0.9, 0.01)
    assert (params.stop, turns, seconds) == (("a", "b"), 3, 7.0)
    assert (other.max_tokens, other.temperature, other.top_p, other.min_p) == (3, 0.0, 0.5, 0.01)
    assert (other.stop, other_turns) == (("c",), 2)


def test_eval_of_another_task_with_options_and_transcripts():
    text = output(
        "eval", "random:tiny", "--task", "sorting", "count=3", "--num-tasks", "2", "--max-tokens", "2", "--show", "1"
    )
    assert "on sorting: numbers_match 0.000 ± 0.000 on 2 held-out tasks" in text
    assert text.count("expected") == 1


def test_sample_gives_as_many_answers_as_asked_and_reads_from_stdin():
    text = output("sample", "last:sft", "hi", "-n", "3", "--max-tokens", "2", "--seed", "0")
    assert [line for line in text.splitlines() if line.startswith("---")] == ["--- 1", "--- 2", "--- 3"]
    piped = CliRunner().invoke(app, ["sample", "last", "-", "--max-tokens", "2", "--seed", "0"], input="hi\n")
    assert piped.exit_code == 0


def test_models_lists_what_is_known_and_where():
    text = output("models")
    assert "smollm2-135m-instruct" in text and "random:tiny" in text


def test_the_demo_is_the_quickstart_recipe(monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(
        "aurify.cli.train.run_recipe", lambda path, overrides, **options: seen.append((path, overrides))
    )
    output("demo", "seed=3")
    [(path, overrides)] = seen
    assert (path.name, overrides) == ("quickstart.yaml", ["seed=3"])

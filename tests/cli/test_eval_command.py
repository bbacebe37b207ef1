"""`aurify eval` with several models: the same questions for all, numbers, answers, comparison and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipe import RECIPE
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.tracking import jsonl

# a reward that random weights earn now and then
PLUGIN = """
import aurify
from aurify import Rubric
from aurify.tasks.taskset import Problem, generated

@aurify.task
def coin(num_heldout: int = 6):
    def odd(task, trajectory):
        return float(len(trajectory.text) % 2)
    return generated("coin", lambda g: Problem(str(g.random()), "0"), num_heldout=num_heldout, rubric=Rubric([odd]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe and one finished run of two stages."""
    folder = tmp_path_factory.mktemp("evals")
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "coin.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke("train", "small.yaml", "stages.sft.steps=3", "stages.sft.optim.lr=0.1")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def invoke(*command: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def read(out: str) -> dict[str, Any]:
    return json.loads((Path(out) / "results.json").read_text())


def test_several_models_get_the_same_questions_and_are_compared():
    text = invoke(
        "eval", "last/sft", "last:grpo", "random:tiny", "--samples", "4", "--temperature", "1", "--max-tokens", "4",
        "--task", "coin", "num_heldout=6", "--plugin", "coin.py", "--out", "three",
    ).stdout  # fmt: skip
    found = read("three")
    run = sorted(Path("runs").iterdir())[-1].name
    names = [f"{run}/sft", f"{run}/grpo", "random:tiny"]
    assert [row["model"] for row in found["results"]] == names == list(found["models"])
    assert {(row["task"], row["num"]) for row in found["results"]} == {("coin", 6)}
    assert [(row["first"], row["second"]) for row in found["comparisons"]] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    answers = [list(jsonl.read_log(Path("three", row["answers"]))) for row in found["results"]]
    assert len({tuple(line["task"] for line in lines) for lines in answers}) == 1
    for row, lines in zip(found["results"], answers, strict=True):
        assert [len(line["answers"]) for line in lines] == [4] * 6
        values = [sum(answer["rewards"]["odd"] for answer in line["answers"]) / 4 for line in lines]
        assert [line["value"] for line in lines] == values and row["value"] == pytest.approx(sum(values) / 6)
        assert row["pass_at"]["1"]["value"] == pytest.approx(row["value"])
        assert row["pass_at"]["4"]["value"] == sum(value > 0 for value in values) / 6
        assert set(row["majority_at"]) == {"1", "2", "4"}
    assert len({row["value"] for row in found["results"]}) > 1 and any(
        row["num_better"] for row in found["comparisons"]
    )
    for row in found["comparisons"]:
        values = [[line["value"] for line in answers[names.index(row[which])]] for which in ("first", "second")]
        assert row["difference"] == pytest.approx((sum(values[1]) - sum(values[0])) / 6)
    for word in ("pass@4", "majority@4", "sign test", "three/report.html"):
        assert word in " ".join(text.split())


def test_the_page_has_numbers_and_questions_and_asks_nothing_of_the_network():
    invoke("eval", "last/sft", "random:tiny", "--num-tasks", "5", "--out", "page")
    html = Path("page/report.html").read_text()
    assert html.count("<details>") == 6, "five questions, and how it was asked"
    assert "5 of 5 questions, those that differ most first" in html and "On the same questions" in html
    assert "default-src 'none'" in html and "src=" not in html.replace("default-src", "").replace("-src", "")
    assert "http" not in html.replace("http-equiv", "")


def test_one_json_object_is_printed_and_is_what_the_folder_has():
    found = json.loads(invoke("eval", "random:tiny", "last", "--json", "--num-tasks", "2", "--out", "json").stdout)
    assert found.pop("folder") == "json" and found == read("json")


def test_the_tasks_of_a_recipe_are_asked_as_it_says():
    Path("two.yaml").write_text(
        "model: random:tiny\nevaluation: {sampling: {max_tokens: 3}}\nstages:\n"
        "  a: {method: grpo, task: {name: sorting, count: 3, num_heldout: 5}, limits: {turns: 2}}\n"
        "  b: {method: grpo, model: '@a', task: {name: sorting, count: 2, num_heldout: 4}}\n"
        "  c: {method: grpo, model: '@b', task: {name: sorting, count: 2, num_heldout: 4}}\n"
    )
    invoke("eval", "random:tiny", "--recipe", "two.yaml", "--out", "two")
    found = read("two")
    assert [(row["task"], row["num"]) for row in found["results"]] == [("sorting 1", 5), ("sorting 2", 4)]
    assert found["tasks"][0]["limits"]["turns"] == 2 != found["tasks"][1]["limits"]["turns"]
    assert {task["sampling"]["max_tokens"] for task in found["tasks"]} == {3}
    told = invoke("eval", "random:tiny", "count=4", "--recipe", "two.yaml", code=2).stderr
    assert "of which task? There are 2: sorting, sorting" in told


def test_a_mixed_task_of_a_run_is_evaluated_with_its_parts():
    Path("mixed.yaml").write_text(
        "model: random:tiny\nstages: {a: {method: grpo}}\n"
        "task: [{name: sorting, count: 2, num_heldout: 4}, {name: largest_number, num_heldout: 4}]\n"
    )
    invoke("eval", "random:tiny", "--recipe", "mixed.yaml", "--max-tokens", "2", "--out", "mixed")
    [row] = read("mixed")["results"]
    assert row["task"] == "mix" and {"sorting/value", "largest_number/value"} <= set(row)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["last", "--samples", "3"], "at temperature 0 all answers to a task are the same"),
        (["last", "last"], "is named twice"),
        (["count=3", "--task", "sorting"], "no model before count=3"),
        (["last/grop"], "did you mean 'grpo'"),
        (["random:tiny", "random:tony"], "did you mean 'random:tiny'"),
        (["last", "--out", "runs"], "--out runs: it is there already"),
        (["random:tiny", "--recipe", "empty.yaml"], "empty.yaml does not say what to evaluate it on"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(command, told):
    Path("empty.yaml").write_text("model: random:tiny\nstages: {a: {method: sft, data: {path: x.jsonl}}}\n")
    before = list(Path("evals").iterdir()) if Path("evals").exists() else []
    assert told in invoke("eval", *command, code=2).stderr.replace("\n", " ")
    assert (list(Path("evals").iterdir()) if Path("evals").exists() else []) == before


def test_a_stage_folder_is_its_model():
    run = sorted(Path("runs").iterdir())[-1]
    invoke("eval", str(run / "sft"), str(run / "grpo" / "final"), "--task", "sorting", "--num-tasks", "1", "--out", "f")
    assert [row["model"] for row in read("f")["results"]] == [f"{run.name}/sft", str(run / "grpo" / "final")]

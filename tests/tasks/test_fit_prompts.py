"""One prompt among many that leaves no room to answer: told before the first step, or left out, as the recipe says."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tokenizers_in_code as made
from typer.testing import CliRunner

from aurify import tasks
from aurify.cli.main import app
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.tasks.taskset import TaskSet, fit_task_prompts, question
from aurify.types import Task

LONG = "word " * 1000


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def renderer():
    return Renderer(made.byte_level())


def taskset(path: Path, *, heldout: bool = False) -> TaskSet:
    rows = [{"prompt": f"{k}?", "answer": str(k)} for k in range(20)]
    rows[7]["prompt"] = LONG
    options = {"heldout_path": write(path / "heldout.jsonl", [rows[7], rows[8]])} if heldout else {"num_heldout": 1}
    return tasks.make("jsonl", path=write(path / "rows.jsonl", rows), **options)


def test_the_first_one_is_named(tmp_path, renderer):
    expected = r"rows.jsonl:8': its prompt has \d+ tokens and the context 2000.*overlong: drop"
    with pytest.raises(UserError, match=expected):
        fit_task_prompts(taskset(tmp_path), renderer, 2000)


@pytest.mark.parametrize("heldout", [False, True])
def test_or_left_out_and_counted(tmp_path, renderer, heldout):
    given = taskset(tmp_path, heldout=heldout)
    fitting = fit_task_prompts(given, renderer, 2000, "drop")
    every = [*fitting.train(0), *fitting.heldout]
    assert len(every) == len([*given.train(0), *given.heldout]) - 1
    assert all(task.prompt[-1]["content"] != LONG for task in every)
    [note] = fitting.notes
    assert note.startswith("tasks left out whose prompts leave no room to answer: 1 (") and ".jsonl:" in note
    whole = fit_task_prompts(given, renderer, 100_000)
    assert [task.id for task in whole.train(3)] == [task.id for task in given.train(3)] and not whole.notes


def test_none_that_fits_is_an_error(tmp_path, renderer):
    with pytest.raises(UserError, match="no prompt leaves room to answer in a context of 8 tokens"):
        fit_task_prompts(taskset(tmp_path), renderer, 8, "drop")


def test_tools_count(tmp_path, renderer):
    tool = {"type": "function", "function": {"name": "f", "description": LONG, "parameters": {}}}
    given = taskset(tmp_path)
    given.tools = [tool]
    with pytest.raises(UserError, match=r"leaves out the tools"):
        fit_task_prompts(given, renderer, 2000)
    with pytest.raises(UserError, match=r"its prompt has \d{4} tokens"):
        fit_task_prompts(given, Renderer(renderer.tokenizer, tools_as_text=True), 2000)


def test_tasks_without_end_are_looked_at_as_they_come(renderer):
    def train(seed):
        for k in range(10**9):
            yield Task(f"{k}", question(LONG if k % 3 == 2 else f"{k}?"))

    given = TaskSet("endless", train, [Task("h", question("?"))], tasks.make("arithmetic").rubric)
    fitting = fit_task_prompts(given, renderer, 2000, "drop")
    assert [task.id for task in islice(fitting.train(0), 4)] == ["0", "1", "3", "4"]
    with pytest.raises(UserError, match="task '2': its prompt has"):
        list(islice(fit_task_prompts(given, renderer, 2000).train(0), 4))


RECIPE = """
model: random:tiny
task: {name: jsonl, path: rows.jsonl, reward: exact_match, num_heldout: 2}
evaluation: {num_tasks: 2, sampling: {max_tokens: 2, temperature: 0.0}}
stages:
  rl:
    {method: grpo, steps: 4, prompts_per_step: 4, completions_per_prompt: 2, sampling: {max_tokens: 2}, overlong: OVER}
"""


@pytest.mark.parametrize("overlong", ["error", "drop"])
def test_a_run_ends_before_its_first_step_or_goes_through(tmp_path, monkeypatch, overlong):
    monkeypatch.chdir(tmp_path)
    taskset(tmp_path)
    Path("recipe.yaml").write_text(RECIPE.replace("OVER", overlong))
    result = CliRunner().invoke(app, ["train", "recipe.yaml"], env={"HF_HUB_OFFLINE": "1"})
    metrics = [path for path in Path("runs").glob("*/rl/metrics.jsonl") if path.read_text().strip()]
    if overlong == "error":
        assert result.exit_code == 2 and "overlong: drop" in result.stderr and "Traceback" not in result.output
        assert not metrics
    else:
        assert result.exit_code == 0, result.output
        events = "".join(path.read_text() for path in Path("runs").glob("*/rl/events.log"))
        assert "tasks left out whose prompts leave no room to answer: 1 (" in events and metrics

"""What a recipe names is made once, by the check, and the run trains on it: files, task sets, algorithms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from aurify import tasks
from aurify.pipeline import check
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe
from aurify.pipeline.run import run_pipeline
from aurify.rows.sources import forget_rows
from aurify.tracking.run_folder import RunFolder
from aurify.tracking.trackers.console import Console

COUNTING = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from aurify.cli.main import app
try:
    app(sys.argv[1:])
finally:
    for name in ("facts.jsonl", "pairs.jsonl"):
        print("OPENED", name, sum(path.endswith(name) for path in opened))
"""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Three stages: a task and two kinds of data, of which two come from one file."""
    facts = write(tmp_path / "facts.jsonl", [{"prompt": f"Box {k}?", "answer": str(k)} for k in range(40)])
    pairs = [{"prompt": f"Cup {k}?", "chosen": str(k), "rejected": "no"} for k in range(40)]
    first = {"method": "sft", "data": {"path": facts}, "steps": 2}
    second = {"method": "dpo", "model": "@first", "data": {"path": write(tmp_path / "pairs.jsonl", pairs)}, "steps": 2}
    third = {"method": "grpo", "model": "@second", "steps": 2, "prompts_per_step": 2, "completions_per_prompt": 2}
    return {
        "model": "random:tiny",
        "task": {"name": "jsonl", "path": facts, "num_heldout": 4},
        "evaluation": {"num_tasks": 2, "sampling": {"max_tokens": 2, "temperature": 0.0}},
        "stages": {"first": first, "second": second, "third": {**third, "sampling": {"max_tokens": 2}}},
    }


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_aurify_train_opens_a_file_once_for_three_stages(recipe, tmp_path, more):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", COUNTING, "train", "recipe.yaml", *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "OPENED facts.jsonl 1" in done.stdout and "OPENED pairs.jsonl 1" in done.stdout
    assert more or ("36 rows" not in done.stdout and "4 rows left out of training" in done.stdout)


def test_task_sets_algorithms_and_examples_are_made_once(recipe, tmp_path, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(tasks, "make", counted("task sets", tasks.make))
    for name in ("build_stage_algorithm", "read_stage_examples"):
        monkeypatch.setattr(check, name, counted(name, getattr(check, name)))
    plan = check_recipe(build_recipe(recipe))
    forget_rows()
    first, second, third = plan.stages.values()
    assert first.taskset is second.taskset is third.taskset and first.taskset is not None
    assert first.examples is not None and len(first.examples.train) == 36 and third.examples is None
    assert first.num_rows == 40
    results = run_pipeline(plan, RunFolder(tmp_path), console=Console(RichConsole(file=StringIO())))
    assert [result["status"] for result in results.values()] == ["finished"] * 3
    assert calls == {"task sets": 1, "build_stage_algorithm": 3, "read_stage_examples": 2}


def test_stages_of_other_tasks_have_task_sets_of_their_own(recipe):
    recipe["stages"]["third"]["task"] = {"name": "largest_number", "num_heldout": 3}
    plan = check_recipe(build_recipe(recipe))
    first, second, third = plan.stages.values()
    assert first.taskset is second.taskset is not third.taskset
    assert first.holder == second.holder == "task 'jsonl' of stages.first"
    assert third.holder == "task 'largest_number' of stages.third"


def test_a_stage_lets_go_of_its_examples_when_it_is_done(recipe, tmp_path):
    plan = check_recipe(build_recipe(recipe))
    run_pipeline(plan, RunFolder(tmp_path), console=Console(RichConsole(file=StringIO())))
    assert all(stage.examples is None for stage in plan.stages.values())

"""Issue 13, results that can be made again: ExGRPO against GRPO on a finite set of questions is one command."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # for comparison.py
    spec = importlib.util.spec_from_file_location("replay_example", EXAMPLES / "replay.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exgrpo_against_grpo_on_a_finite_set_of_questions_writes_json(example, tmp_path, capsys):
    out = tmp_path / "data" / "finite.json"
    command = "--model random:tiny --questions 6 --medium 2 --hard 3 --epochs 2 --seeds 2 --completions 2 --prompts 3"
    rows = example.main([*command.split(), "--max-tokens", "3", "--eval-tasks", "4", "--start", "0", "--out", str(out)])
    written = json.loads(out.read_text())
    assert [(run["method"], run["seed"]) for run in written["runs"]] == [
        ("grpo", 0), ("grpo", 1), ("exgrpo", 0), ("exgrpo", 1),
    ]  # fmt: skip
    assert written["settings"]["questions"] == "6" and set(written["versions"]) == {"aurify", "torch", "transformers"}
    for row, run in zip(rows, written["runs"], strict=True):
        assert row["answers_sampled"] == 24 == run["answers_sampled"], "two epochs of six questions, two answers each"
        assert {"before", "after", "trained_before", "trained_after", "curve", "seconds"} <= set(run)
    assert rows[0]["steps"] == 4
    assert "| grpo | " in capsys.readouterr().out


def test_the_finite_questions_are_half_medium_half_hard_and_not_held_out(example):
    options = example.arguments("", methods="", tokens=1, completions=1, max_tokens=1, lr=1.0).parse_args([])
    options.questions, options.medium, options.hard = 64, 4, 8
    taskset = example.fixed_questions(options)
    trained = [task.prompt[0]["content"] for task in taskset.train(5)]
    heldout = {task.prompt[0]["content"] for task in taskset.heldout}
    assert len(set(trained)) == 64 and len(heldout) == 100 and not heldout & set(trained)
    assert sorted(text.count(",") for text in trained) == [3] * 32 + [7] * 32
    assert set(trained) == {task.prompt[0]["content"] for task in taskset.train(9)}, "the same in every epoch"

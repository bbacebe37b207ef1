"""Issue 13, held-out truth, from the command's recipe to what was trained: a file that a task and a stage share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines import run, steps

from aurify import tasks
from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.pipeline.recipe import build_recipe

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def facts(num: int) -> list[dict[str, Any]]:
    return [{"question": f"Box {k}?", "answer": f"So <<{k}+1={k + 1}>>{k + 1}.\n#### {k + 1}"} for k in range(num)]


def recipe(path: str, **stage: Any) -> dict[str, Any]:
    sft = {"method": "sft", "data": {"path": path}, "epochs": 1, "batch_size": 4, **stage}
    return {
        "model": "random:tiny",
        "task": {"name": "gsm8k", "path": path},
        "evaluation": {"num_tasks": 2, "sampling": {"max_tokens": 2, "temperature": 0.0}},
        "stages": {"sft": sft},
    }


def test_accuracy_is_measured_on_questions_that_were_not_trained(tmp_path, monkeypatch):
    path = write(tmp_path / "facts.jsonl", facts(30))
    heldout = {task.prompt[0]["content"] for task in tasks.make("gsm8k", path=path).heldout}
    seen: list[str] = []
    original = Engine.forward_backward

    def forward_backward(self: Engine, data: Any, *rest: Any, **more: Any) -> Any:
        seen.extend(self.tokenizer.decode(datum.tokens) for datum in data)
        return original(self, data, *rest, **more)

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    results = run(recipe(path), tmp_path / "run")
    assert len(heldout) == 3 and len(seen) == 27
    assert not any(question in text for question in heldout for text in seen)
    assert not any("<<" in text for text in seen) and all("####" in text for text in seen)
    assert results["sft"]["rows_held_out"] == 3 and results["sft"]["measure"] == "number_match"
    assert {row["ledger/rows_held_out"] for row in steps(tmp_path / "run" / "sft" / "ledger.jsonl")} == {3.0}
    events = (tmp_path / "run" / "sft" / "events.log").read_text()
    assert "3 rows left out of training, their questions are held out: task 'gsm8k' of stages.sft" in events
    assert "30 rows changed: GSM8K's calculator annotations" in events


def test_a_file_of_held_out_questions_alone_ends_before_anything_is_trained(tmp_path):
    path = write(tmp_path / "facts.jsonl", facts(30))
    heldout = {task.prompt[0]["content"] for task in tasks.make("gsm8k", path=path).heldout}
    only = write(tmp_path / "only.jsonl", [row for row in facts(30) if row["question"] in heldout])
    with pytest.raises(UserError, match="nothing is left to train on"):
        run(recipe(path, data={"path": only}), tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K file is not on this machine (shared/data/gsm8k/train.jsonl)")
def test_the_dry_run_tells_of_the_747_questions_of_gsm8k(tmp_path, capsys, monkeypatch):
    from aurify.cli.plan import print_plan
    from aurify.pipeline.check import check_recipe

    monkeypatch.setenv("COLUMNS", "200")
    values = build_recipe(recipe(str(GSM8K), overlong="drop"))
    print_plan(check_recipe(values))
    shown = " ".join(capsys.readouterr().out.split())
    assert "sft: 747 rows left out of training, their questions are held out: task 'gsm8k' of stages.sft" in shown
    assert "sft: 7,378 rows changed: GSM8K's calculator annotations" in shown

"""Evaluation while a stage trains: it leaves its best step, it stops when nothing gets better, and a run that was
killed knows what the straight one knows."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from pipelines import SHORT_ONLINE, run, run_to_the_end, signal_at, steps, tiny

from aurify.errors import UserError
from aurify.pipeline.recipe import build_recipe

# a learning rate that first teaches and then destroys: it grows by 0.002 a step
RISING = {"lr": 0.2, "warmup_steps": 100, "schedule": "constant", "max_grad_norm": 1000.0}
PLUGIN = """
from aurify import Rubric, task
from aurify.tasks.taskset import Problem, generated

@task
def odd(num_heldout: int = 12):
    def odd_length(task, trajectory):
        return float(sum(map(ord, trajectory.text)) % 2)
    make = lambda generator: Problem(f"{generator.random():.3f}?", "0")
    return generated("odd", make, num_heldout=num_heldout, rubric=Rubric([odd_length]))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [(f"say {k} twice", f"{k} {k}") for k in range(80)]
    path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
    return path


def offline(rows: Path, dtype: str = "float32", **evaluation: Any) -> dict[str, Any]:
    stage = {"method": "sft", "data": {"path": str(rows), "heldout_share": 0.2}, "steps": 30, "optim": RISING}
    stage |= {"checkpoint_every": 7}
    return {"model": tiny(dtype), "evaluation": {"every": 5, **evaluation}, "stages": {"sft": stage}}


def heldout(path: Path, name: str = "eval/loss") -> dict[int, float]:
    return {row["step"]: row[name] for row in steps(path / "heldout.jsonl")}


def heldout_loss_of_the_result(path: Path, rows: Path, tmp_path: Path) -> float:
    """A further stage begins with the model that the first one left, and measures it before it trains."""
    values = offline(rows)
    values["model"] = {"name": str(path / "sft" / "final"), "dtype": "float32"}
    values["evaluation"] = {}
    values["stages"]["sft"]["steps"] = 1
    return run(values, tmp_path / "again")["sft"]["before"]


def test_a_stage_leaves_the_model_of_its_best_number(rows, tmp_path):
    found = run(offline(rows), tmp_path / "run")["sft"]
    known = heldout(tmp_path / "run" / "sft")
    assert list(known) == [0, 5, 10, 15, 20, 25, 30]
    best = min(list(known)[1:], key=lambda step: known[step])
    assert best < 30 and known[30] > known[best] < known[0], f"it should learn and then be destroyed: {known}"
    assert (found["after"], found["best_step"], found["last_step"]) == (known[best], best, 30)
    assert heldout_loss_of_the_result(tmp_path / "run", rows, tmp_path) == pytest.approx(known[best], abs=1e-5)
    assert not (tmp_path / "run" / "sft" / "best").exists()
    events = (tmp_path / "run" / "sft" / "events.log").read_text()
    assert f"(step {best}, the best of 6 evaluations)" in events


def test_the_last_step_is_left_where_the_best_is_not_to_be_kept(rows, tmp_path):
    found = run(offline(rows, keep_best=False), tmp_path / "run")["sft"]
    known = heldout(tmp_path / "run" / "sft")
    assert (found["after"], found["best_step"]) == (known[30], 30)
    assert heldout_loss_of_the_result(tmp_path / "run", rows, tmp_path) == pytest.approx(known[30], rel=1e-4)


def test_a_stage_ends_when_nothing_gets_better(rows, tmp_path):
    whole = run(offline(rows), tmp_path / "whole")["sft"]
    found = run(offline(rows, stop_after=2), tmp_path / "run")["sft"]
    assert found["best_step"] == whole["best_step"] and found["last_step"] == whole["best_step"] + 10 < 30
    assert len(steps(tmp_path / "run" / "sft" / "metrics.jsonl")) == found["last_step"]
    assert f"ended {30 - found['last_step']} steps early" in (tmp_path / "run" / "sft" / "events.log").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 1)])
def test_killed_and_resumed_it_has_the_same_history_and_model(rows, tmp_path, dtype, number, code):
    values = offline(rows, dtype, stop_after=3)
    run_to_the_end(values, tmp_path / "straight")
    for step in (6, 13, 22):
        known = len(steps(tmp_path / "straight" / "sft" / "metrics.jsonl"))
        if step < known:
            assert signal_at(values, tmp_path / "killed", "sft", step, number) == code
    run_to_the_end(values, tmp_path / "killed")
    assert_same_result(tmp_path, "sft")


def test_answers_are_measured_while_a_stage_samples_and_a_killed_one_goes_on(tmp_path, dtype):
    (tmp_path / "odd.py").write_text(PLUGIN)
    grpo = {"method": "grpo", **SHORT_ONLINE, "optim": {"lr": 0.03}}
    values = {
        "model": tiny(dtype),
        "task": "odd",
        "plugins": [str(tmp_path / "odd.py")],
        "evaluation": {"every": 3, "num_tasks": 12, "sampling": {"max_tokens": 4, "temperature": 1.0}},
        "stages": {"grpo": grpo},
    }
    run_to_the_end(values, tmp_path / "straight")
    known = heldout(tmp_path / "straight" / "grpo", "eval/odd_length")
    assert list(known) == [0, 3, 6, 9, 12, 14] and len(set(known.values())) > 1
    assert signal_at(values, tmp_path / "killed", "grpo", 8, signal.SIGKILL) == -signal.SIGKILL
    run_to_the_end(values, tmp_path / "killed")
    assert_same_result(tmp_path, "grpo")


def assert_same_result(folder: Path, stage: str) -> None:
    from safetensors.torch import load_file

    ours, theirs = (json.loads((folder / run / "results.json").read_text())[stage] for run in ("straight", "killed"))
    for name in ("before", "after", "best_step", "last_step", "num_evaluations", "details_after"):
        assert ours[name] == theirs[name], name
    for name in ("metrics.jsonl", "heldout.jsonl"):
        assert steps(folder / "straight" / stage / name) == steps(folder / "killed" / stage / name), name
    for file in (folder / "straight" / stage / "final").glob("*.safetensors"):
        one, other = load_file(file), load_file(folder / "killed" / stage / "final" / file.name)
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        ({"stop_after": 2}, "no effect without every"),
        ({"keep_best": False}, "no effect without every"),
        ({"every": 5, "num_tasks": 0}, "nothing is evaluated"),
    ],
)
def test_options_without_effect_are_refused(rows, evaluation, told):
    values = offline(rows)
    with pytest.raises(UserError, match=told):
        build_recipe({**values, "evaluation": evaluation})

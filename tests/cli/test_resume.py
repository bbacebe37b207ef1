"""A run goes on with changes: longer or with another optimiser in the middle of a stage, recorded; nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config
from aurify.engine.engine import Engine

RECIPE = """
name: small
model: random:tiny
task: {name: largest_number, count: 2, maximum: 9, num_heldout: 4}
evaluation: {num_tasks: 0}
stages:
  sft:
    method: sft
    data: {demonstrations: 16}
    steps: 5
    batch_size: 3
    checkpoint_every: 1
    optim: {lr: 1e-2, schedule: linear}
  rl:
    {method: grpo, model: "@sft", steps: 4, prompts_per_step: 2, completions_per_prompt: 3, checkpoint_every: 1,
     sampling: {max_tokens: 4}}
"""
OTHER = RECIPE.replace("sft:", "warm:").replace("method: warm:", "method: sft").replace("@sft", "@warm")


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    Path("other.yaml").write_text(OTHER)


def invoke(*command: str):
    return CliRunner().invoke(app, list(command))


def stop_before(step: int, *command: str) -> Path:
    """A run whose optimiser breaks at a step of its first stage."""
    real = Engine.optim_step

    def broken(self, lr):
        if self.version + 1 == step:
            raise RuntimeError("stop")
        return real(self, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "optim_step", broken)
        assert invoke("train", "small.yaml", *command).exit_code == 1
    return last_run()


def last_run() -> Path:
    return max(Path("runs").iterdir(), key=lambda run: run.stat().st_ctime_ns)


def rows(run: Path, stage: str = "sft") -> list[dict]:
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))} for line in lines]


def complaint(*command: str) -> str:
    result = invoke(*command)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_a_stage_trains_longer_with_its_data_in_order_and_its_schedule_continued():
    run = stop_before(4)
    before = rows(run)
    result = invoke("train", "--resume", "last", "stages.sft.steps=8")
    assert result.exit_code == 0, result.output
    assert "stages.sft.steps: 5 -> 8" in result.stdout
    assert [row["step"] for row in rows(run)] == list(range(1, 9)) and rows(run)[:3] == before
    assert [row["optim/lr"] for row in rows(run)[3:]] == pytest.approx([1e-2 * (1 - k / 8) for k in range(3, 8)])

    assert invoke("train", "small.yaml", "stages.sft.steps=8").exit_code == 0  # the same data, on another schedule
    straight = last_run()
    ledgers = [(one / "sft" / "ledger.jsonl").read_text() for one in (run, straight)]
    assert straight != run and ledgers[0] == ledgers[1]


def test_without_a_schedule_training_longer_is_a_longer_run_to_the_bit():
    run = stop_before(4, "stages.sft.optim.schedule=constant")
    assert invoke("train", "--resume", "last", "stages.sft.steps=8").exit_code == 0
    assert invoke("train", "small.yaml", "stages.sft.optim.schedule=constant", "stages.sft.steps=8").exit_code == 0
    assert last_run() != run and rows(run) == rows(last_run())
    ours, theirs = (load_file(one / "sft" / "final" / "model.safetensors") for one in (run, last_run()))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_second_leg_is_recorded_and_shown():
    run = stop_before(3)
    result = invoke("train", "--resume", "last", "stages.sft.optim.lr=0.5", "stages.sft.steps=6")
    assert result.exit_code == 0, result.output
    leg = "leg 2 (after step 2): stages.sft.steps: 5 -> 6, stages.sft.optim.lr: 0.01 -> 0.5"
    assert leg in result.stdout and leg in (run / "sft" / "console.log").read_text()
    assert leg.replace(">", "&gt;") in (run / "report.html").read_text().partition("<h2>sft</h2>")[2][:600]
    listed = " ".join(CliRunner().invoke(app, ["runs"], env={"COLUMNS": "200"}).stdout.split())
    assert f"finished; went on with other options: {leg.replace(' (after step 2)', '')}" in listed
    assert load_config(run / "recipe.yaml")["stages"]["sft"]["optim"]["lr"] == 0.5
    assert load_config(run / "recipe.1.yaml")["stages"]["sft"]["optim"]["lr"] == 0.01
    leg = json.loads((run / "run_info.json").read_text())["legs"]["2"]
    assert leg["changes"] == {"stages.sft.optim.lr": "0.01 -> 0.5", "stages.sft.steps": "5 -> 6"} and leg["command"]
    assert "goes on with stages.sft.steps: 5 -> 6" in (run / "sft" / "events.log").read_text()
    page = (run / "report.html").read_text()
    assert "legs 2 changes stages.sft.steps" in page and "lr: 0.5" in page
    assert invoke("train", "--resume", "last").exit_code == 0, "and again without a change"
    assert list(json.loads((run / "run_info.json").read_text())["legs"]) == ["2"]


def test_a_change_to_a_finished_stage_is_refused_and_leaves_the_run_as_it_was():
    assert invoke("train", "small.yaml", "stages.rl.steps=1").exit_code == 0
    before = (last_run() / "recipe.yaml").read_text()
    said = complaint("train", "--resume", "last", "stages.sft.steps=6")
    assert "stages.sft.steps: 5 -> 6 would change nothing" in said and f"model={last_run()}/sft/final" in said
    assert (last_run() / "recipe.yaml").read_text() == before


def test_a_stage_that_has_not_begun_may_change_in_every_way():
    run = stop_before(3)
    assert invoke("train", "--resume", "last", "stages.rl.steps=2", "stages.rl.completions_per_prompt=4").exit_code == 0
    assert len(rows(run, "rl")) == 2


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("other.yaml",), "stages.sft.method: sft -> null is another recipe"),
        (("stages.sft.batch_size=4",), "stages.sft.batch_size: 3 -> 4 is another recipe"),
        (("stages.sft.data.demonstrations=8",), "stages.sft.data.demonstrations: 16 -> 8 is another recipe"),
        (("lora.rank=4",), "lora.rank: null -> 4 is another recipe"),
        (("seed=3",), "seed: null -> 3 is another recipe"),
        (("stages.sft.steps=1",), "stages.sft.steps: 2 steps are done already, and the stage is to have 1"),
    ],
)
def test_another_recipe_does_not_train_into_the_folder(command, told):
    run = stop_before(3)
    before = {file: file.read_bytes() for file in (*run.glob("sft/*.jsonl"), run / "recipe.yaml")}
    assert told in complaint("train", *command, "--resume", "last")
    assert {file: file.read_bytes() for file in before} == before
    assert not (run / "recipe.1.yaml").exists()

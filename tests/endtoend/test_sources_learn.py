"""The recipes with a guide and with a replay buffer, and the examples that compare them, on tiny models."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from statistics import fmean

from pipelines import run, steps

from aurify.config import load_config
from aurify.report.report import write_report

ROOT = Path(__file__).parents[2]


def test_luffy_learns_what_its_guide_writes(tmp_path):
    overrides = ["stages.luffy.steps=40"]
    run(load_config(ROOT / "recipes" / "tiny" / "luffy.yaml", overrides), tmp_path)
    rows = steps(tmp_path / "luffy" / "metrics.jsonl")
    probability = [row["loss/guidance_probability"] for row in rows]
    assert probability[0] < 0.01 and fmean(probability[-5:]) > 0.1
    assert all(row["guidance/reward"] == 1 and 0 < row["loss/guidance_share"] < 1 for row in rows)


def test_exgrpo_fills_its_buffer_and_the_report_shows_it(tmp_path):
    overrides = ["stages.sft.steps=60", "stages.exgrpo.steps=8", "stages.exgrpo.replay.start=0.0"]
    values = load_config(ROOT / "recipes" / "tiny" / "exgrpo.yaml", overrides)
    run(values, tmp_path)
    rows = steps(tmp_path / "exgrpo" / "metrics.jsonl")
    assert rows[-1]["replay/used"] == 4 and rows[-1]["replay/trajectories"] > rows[3]["replay/trajectories"] > 0
    sizes = sum(rows[-1][f"replay/bucket_{k}"] for k in range(1, 8))
    assert sizes == rows[-1]["replay/questions"]
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Replay buffer" in page and "Questions by successes" in page


def example(name: str, *arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--model", "random:tiny", "--seeds", "1", "--eval-tasks", "4", *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module(name).main()


def test_examples_give_every_method_the_same_budget(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log.jsonl"
    small = ("--tokens", "400", "--prompts", "2", "--max-tokens", "12", "--log", str(log))
    example("guided", *small, "--task", "addition", "--size", "1", "--sft-batch", "2", monkeypatch=monkeypatch)
    example("replay", *small, "--start", "0", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["method"] for row in rows] == ["grpo", "luffy", "sft", "rl_sft", "sft_then_rl", "grpo", "exgrpo"]
    assert all(400 <= row["tokens_trained"] < 600 for row in rows[:5])
    assert all(400 <= row["tokens_sampled"] < 600 for row in rows[5:])
    assert rows[2]["tokens_sampled"] == 0 and all(row["curve"] for row in rows)
    table = capsys.readouterr().out
    assert all(f"| {row['method']} |" in table for row in rows)

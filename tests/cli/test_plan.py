"""The dry run: how rows are shared out, and an example that fits a screen, with colours or without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.models.loading import save_model
from aurify.models.model import tiny_model

RECIPE = """
name: rows
model: random:tiny
stages:
  sft: {method: sft, data: {path: rows.jsonl}, steps: 1, batch_size: 1}
"""


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def write_rows(answer: str = "4", num: int = 20) -> None:
    rows = (
        {"messages": [{"role": "user", "content": f"2+{k}?"}, {"role": "assistant", "content": f"{answer} {k}"}]}
        for k in range(num)
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def dry_run(*overrides: str, **environment: str) -> str:
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run", *overrides], env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_share_that_is_held_out_is_told_before_and_while_training():
    write_rows()
    told = "18 to train on; 2 held out to evaluate on (a share of 0.1, see data.heldout_share)"
    assert told in " ".join(dry_run().split())
    assert CliRunner().invoke(app, ["train", "recipe.yaml"]).exit_code == 0
    [events] = Path("runs").glob("*/sft/events.log")
    assert told in events.read_text() and "held-out loss before: " in events.read_text()
    assert "held out to evaluate" not in dry_run("stages.sft.data.heldout_share=0")


def test_without_colours_the_trained_part_stands_between_marks():
    write_rows()
    text = dry_run(NO_COLOR="1")
    assert "What stands between « and » is trained" in text and "Green" not in text
    assert text.count("«4 ") == 1 and "»" in text
    coloured = dry_run(FORCE_COLOR="1", TERM="xterm-256color")
    assert "Green is trained" in coloured and "«" not in coloured


def test_an_example_of_60_kb_is_shown_without_its_middle():
    write_rows("begin " + "x" * 60_000 + " end")
    model = tiny_model(max_position_embeddings=70_000)
    save_model(model.module, model.tokenizer, Path("model"))
    text = dry_run("model=model")
    joined = "".join(text.split())
    assert len(text) < 6_000 and "beginxxx" in joined and "xxxend" in joined
    assert "characters left out" in " ".join(text.split())

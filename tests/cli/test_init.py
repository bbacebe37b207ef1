"""`aurify init` writes a recipe that the dry run takes, fitted to a card, and never over another file."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.config import load_config

ROWS = {
    "chats": lambda k: {"messages": [{"role": "user", "content": f"{k}+1?"}, {"role": "assistant", "content": f"{k}"}]},
    "pairs": lambda k: {"prompt": f"{k}+1?", "chosen": f"{k + 1}", "rejected": f"{k}"},
    "labels": lambda k: {"prompt": f"{k}+1?", "completion": f"{k + 1}", "label": k % 2 == 0},
    "tasks": lambda k: {"prompt": f"{k}+1?", "answer": f"{k + 1}"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row(k)) + "\n" for k in range(20)))
    return tmp_path


def invoke(*command: str):
    return CliRunner().invoke(app, list(command))


def write(*flags: str):
    result = invoke("init", "--model", "random:tiny", *flags)
    assert result.exit_code == 0, result.output
    return load_config("recipe.yaml")


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (["--data", "chats.jsonl"], "sft"),
        (["--data", "pairs.jsonl"], "dpo"),
        (["--data", "labels.jsonl"], "kto"),
        (["--data", "pairs.jsonl", "--method", "reward_model"], "reward_model"),
        (["--data", "tasks.jsonl", "--method", "grpo"], "grpo"),
        (["--data", "largest_number"], "grpo"),
        (["--data", "largest_number", "--method", "sft"], "sft"),
        (["--data", "largest_number", "--method", "dpo"], "dpo"),
    ],
)
def test_the_recipe_passes_the_dry_run(folder, flags, method):
    values = write(*flags, "--yes")
    assert values["stages"][method]["method"] == method
    text = (folder / "recipe.yaml").read_text()
    assert text.count("  # ") > 5 and f"# {method} of random:tiny" in text, "it is commented"
    dry = invoke("train", "recipe.yaml", "--dry-run")
    assert dry.exit_code == 0 and "The recipe is fine" in dry.stdout, dry.output


def test_a_written_recipe_trains(folder):
    write("--data", "chats.jsonl", "--yes")
    result = invoke("train", "recipe.yaml", "stages.sft.epochs=1")
    assert result.exit_code == 0, result.output
    assert len(list((folder / "runs").glob("*/sft/final"))) == 1


def test_it_is_changed_until_it_fits_the_card(folder):
    plain, fitted = write("--data", "largest_number", "--yes"), None
    (folder / "recipe.yaml").unlink()
    fitted = write("--data", "largest_number", "--yes", "--card", "0.602GB")
    changed = {key for key in {*plain, *fitted} if plain.get(key) != fitted.get(key)}
    assert changed, "2 MiB are too few for it as it is"
    assert "# so that it fits a card of 0.602 GiB" in (folder / "recipe.yaml").read_text()
    plan = invoke("plan", "recipe.yaml", "--card", "0.602GB")
    assert plan.exit_code == 0, plan.output


def test_a_model_too_large_for_the_card_is_refused_and_nothing_written(folder):
    result = invoke("init", "--model", "random:tiny", "--data", "largest_number", "--yes", "--card", "0.6001GB")
    assert result.exit_code == 2 and "take a smaller model" in " ".join(result.stderr.split())
    assert not (folder / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "chats.jsonl"], "nobody can be asked here"),
        (["--model", "random:tiny"], "or take the usual ones with --yes"),
        (["--model", "random:tiny", "--data", "chat.jsonl", "--yes"], "did you mean 'chats.jsonl'"),
        (["--model", "random:tiny", "--data", "chats.jsonl", "--method", "ppo"], "here that is grpo or rloo"),
        (["--model", "random:tiny", "--data", "chats.jsonl", "--method", "dpo"], "pairs"),
        (
            ["--model", "random:tiny", "--data", "chats.jsonl", "--card", "9090", "--yes", "there.yaml"],
            "is there already",
        ),
        (["--model", "random:tiny", "--data", "chats.jsonl", "--card", "rtx409", "--yes"], "did you mean 'rtx4090'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, flags, words):
    (folder / "there.yaml").write_text("mine: 1\n")
    result = invoke("init", *flags)
    assert result.exit_code == 2 and words in " ".join(result.stderr.split()), result.output
    assert not (folder / "recipe.yaml").exists() and (folder / "there.yaml").read_text() == "mine: 1\n"


def test_on_a_terminal_it_asks_four_questions(folder):
    """By a terminal of its own: the answers are typed."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "aurify.cli.main", "init", "asked.yaml"]
    process = subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.write(controller, b"random:tiny\npairs.jsonl\n\n24GB\n")
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    for question in ("Model [smollm2-135m-instruct]", "a task [largest_number]", "Method [dpo]", "or here [here]"):
        assert question in shown
    assert "on a card of 24 GiB" in shown and load_config("asked.yaml")["stages"]["dpo"]["data"] == {
        "path": "pairs.jsonl"
    }
    os.close(terminal)
    os.close(controller)

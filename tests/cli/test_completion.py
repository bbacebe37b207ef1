"""Completion of shells: the script that they load, and what it offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurify.cli.names import complete_models, complete_recipes, complete_runs

CALL = "import sys; from aurify.cli.main import app; sys.argv[0] = 'aurify'; app(prog_name='aurify')"


def run(*arguments: str, **variables: str) -> str:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **variables}
    command = [sys.executable, "-c", CALL, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not result.stderr, result.stderr
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_back(shell):
    script = run("--show-completion", shell)
    assert "_AURIFY_COMPLETE" in script and "aurify" in script


def test_it_is_written_into_the_shells_own_files(tmp_path):
    shown = run("--install-completion", "bash", HOME=str(tmp_path))
    assert "bash completion installed" in shown
    assert "_AURIFY_COMPLETE" in (tmp_path / ".bash_completions" / "aurify.sh").read_text()


@pytest.mark.parametrize(
    ("words", "offered"),
    [("aurify co", ["convert"]), ("aurify train quick", ["quickstart"]), ("aurify plan tiny/s", ["tiny/sft"])],
)
def test_the_shell_is_offered_commands_and_recipes(words, offered):
    number = str(len(words.split()) - 1)
    shown = run(_AURIFY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
    assert shown.split() == offered


def test_runs_models_and_files_here_are_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "2026-11-30-tiny").mkdir(parents=True)
    (tmp_path / "runs" / "2026-11-30-tiny" / "recipe.yaml").touch()
    for name in ("mine.yaml", "mine.txt", "model.gguf"):
        Path(name).touch()
    assert complete_runs("") == ["last", "2026-11-30-tiny"] and complete_runs("2026") == ["2026-11-30-tiny"]
    assert complete_recipes("min") == ["mine.yaml"]
    assert complete_models("mod") == ["model.gguf"] and complete_models("smol") == ["smollm2-135m-instruct"]
    assert complete_models("ru") == ["runs/"]

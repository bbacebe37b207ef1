"""Hints for the shell name a command that the shell finds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aurify.pipeline.run import name_command


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment in `.venv`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".venv" / "bin" / "aurify"
    file.parent.mkdir(parents=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [".venv/bin/aurify", "demo"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return file


def test_an_environment_that_is_not_activated_is_named_by_its_path(installed, monkeypatch, tmp_path):
    assert name_command() == ".venv/bin/aurify"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", [str(installed)])
    assert name_command() == str(installed)


def test_what_the_shell_finds_needs_no_path(installed, monkeypatch):
    monkeypatch.setenv("PATH", f"{installed.parent}:/usr/bin:/bin")
    assert name_command() == "aurify"
    monkeypatch.setattr(sys, "argv", [str(installed)])
    assert name_command() == "aurify"


def test_another_environment_comes_first_in_the_path(installed, monkeypatch, tmp_path):
    other = tmp_path / "other" / "aurify"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{installed.parent}:/usr/bin:/bin")
    assert name_command() == ".venv/bin/aurify"


@pytest.mark.parametrize("name", ["-c", "/somewhere/aurify/cli/main.py", "train_mine.py", ""])
def test_programs_of_ones_own_name_the_command(installed, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name])
    assert Path(name).name != "aurify" and name_command() == "aurify"

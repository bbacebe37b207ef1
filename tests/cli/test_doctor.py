from __future__ import annotations

from collections import namedtuple

import pytest
from typer.testing import CliRunner

from aurify.cli import doctor
from aurify.cli.main import app


@pytest.fixture
def examine(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda: CliRunner().invoke(app, ["doctor"])


def test_a_healthy_machine(examine):
    result = examine()
    assert result.exit_code == 0, result.output
    for subject in ("python", "torch", "cpu", "memory", "gpu", "model hub", "model cache", "disk"):
        assert subject in result.stdout
    assert "PROBLEM" not in result.stdout


def test_a_missing_package_is_a_problem_and_a_missing_extra_is_not(examine, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module": ("extra", "something")})
    assert "pip install 'aurify[extra]'" in examine().stdout
    monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    result = examine()
    assert result.exit_code == 1
    assert "PROBLEM no-such-package" in result.stdout


def test_little_memory_and_little_disk_are_named(examine, monkeypatch):
    usage, memory = namedtuple("usage", "total used free"), namedtuple("memory", "total available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(8 * doctor.GIB, doctor.GIB))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, doctor.GIB))
    text = examine().stdout
    assert "1.0 of 8.0 GiB free; the demo wants about 3" in text
    assert "1 GiB free; checkpoints may not fit" in text


def test_every_subject_stands_apart_from_what_is_said_of_it(examine):
    for line in examine().stdout.splitlines()[:-1]:
        verdict, rest = line.split(maxsplit=1)
        assert verdict in ("ok", "note", "PROBLEM") and "  " in rest, line
    assert "sentence_transformers  " in examine().stdout

from __future__ import annotations

from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli import doctor
from aurify.cli.main import app
from aurify.sandbox.sandbox import find_sandbox_backend


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


# ---------------------------------------------------------------------- planted faults, each with what mends it

FAULTS = {
    "a core package is missing": ("PROBLEM no-such-package", "`pip install no-such-package`"),
    "a core package is too old": ("PROBLEM transformers", "4.0.0 is installed, <6,>=5.19 is needed"),
    "an extra's package is too old": ("note    datasets", "`pip install 'datasets>=4'`"),
    "a package cannot be imported": ("PROBLEM processor", "`pip install --upgrade --force-reinstall aurify`"),
    "threads are held back": ("note    cpu", "`unset OMP_NUM_THREADS`"),
    "the dtype of the environment is unknown": ("PROBLEM dtype", "`unset AURIFY_DTYPE`"),
    "torch is built for the CPU": ("PROBLEM gpu", "`pip install --force-reinstall torch`"),
    "the card is hidden": ("note    gpu", "`unset CUDA_VISIBLE_DEVICES`"),
    "the hub is switched off": ("note    model hub", "`unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE`"),
    "the hub is out of reach": ("note    model hub", "`export HTTPS_PROXY=URL`"),
    "the folder cannot be written to": ("PROBLEM disk, here", "`aurify train RECIPE --runs FOLDER`"),
    "the disk is nearly full": ("note    disk, cache", "`export AURIFY_CACHE=FOLDER`"),
    "little memory is free": ("note    memory", "`aurify plan RECIPE`"),
    "no sandbox works": ("note    sandbox", "`apt-get install bubblewrap`"),
    "the terminal writes no UTF-8": ("note    terminal", "`export PYTHONUTF8=1`"),
    "an extra is missing": ("note    no_such_module", "`pip install 'aurify[extra]'`"),
}


def plant(fault: str, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    if fault == "a core package is missing":
        monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    elif "too old" in fault:
        old = "transformers" if "core" in fault else "datasets"
        monkeypatch.setattr(doctor, "version", lambda name: "4.0.0" if name == "transformers" == old else
                            "3.9" if name == "datasets" == old else version(name))  # fmt: skip
        monkeypatch.setattr(doctor, "requires", lambda name: ["transformers<6,>=5.19", "datasets>=4; extra == 'hub'"])
    elif fault == "a package cannot be imported":
        monkeypatch.setattr("torch.get_num_threads", lambda: 1 / 0)
    elif fault == "threads are held back":
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    elif fault == "the dtype of the environment is unknown":
        monkeypatch.setenv("AURIFY_DTYPE", "float8")
    elif fault in ("torch is built for the CPU", "the card is hidden"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.version.cuda", None)
        monkeypatch.setattr(doctor, "NVIDIA", path)
        if fault == "the card is hidden":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    elif fault == "the hub is out of reach":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    elif fault == "the folder cannot be written to":
        monkeypatch.setattr("os.access", lambda folder, mode: folder != Path.cwd())
    elif fault == "the disk is nearly full":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, doctor.GIB))
    elif fault == "little memory is free":
        memory = namedtuple("memory", "total available")
        monkeypatch.setattr("psutil.virtual_memory", lambda: memory(8 * doctor.GIB, doctor.GIB))
    elif fault == "no sandbox works":
        monkeypatch.setattr("aurify.sandbox.sandbox.is_seccomp_supported", lambda: False)
        monkeypatch.setattr("aurify.sandbox.sandbox.find_sandbox_backend", find_sandbox_backend.__wrapped__)
    elif fault == "the terminal writes no UTF-8":
        monkeypatch.setattr(doctor, "read_terminal_encoding", lambda: "ascii")
    elif fault == "an extra is missing":
        monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module": ("extra", "something")})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_the_command_that_mends_it(examine, monkeypatch, tmp_path, fault):
    subject, mend = FAULTS[fault]
    if fault != "the hub is switched off":  # the fixture has done that
        assert not any(line.startswith(subject) and mend in line for line in examine().stdout.splitlines())
    plant(fault, monkeypatch, tmp_path)
    result = examine()
    found = [line for line in result.stdout.splitlines() if line.startswith(subject)]
    assert found and mend in found[0] and "`" in found[0], result.output
    assert result.exit_code == (1 if subject.startswith("PROBLEM") else 0), result.output


def test_every_note_and_problem_names_a_command(examine, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module": ("extra", "something")})
    for line in examine().stdout.splitlines()[:-1]:
        assert line.startswith("ok") or "`" in line, line

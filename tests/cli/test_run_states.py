"""How a run ended, and why, as `aurify runs` and the report tell it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.engine.engine import Engine

RECIPE = """
name: small
model: random:tiny
task: {name: largest_number, count: 2, maximum: 9, num_heldout: 4}
evaluation: {num_tasks: 0}
stages:
  sft: {method: sft, data: {demonstrations: 16}, steps: STEPS, batch_size: 2, checkpoint_every: 1}
"""


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE.replace("STEPS", "3"))
    Path("long.yaml").write_text(RECIPE.replace("STEPS", "20000"))


@contextmanager
def breaking(number: int, error: BaseException) -> Iterator[None]:
    """The optimiser step of this number raises."""
    real = Engine.optim_step

    def broken(self, lr):
        if self.version + 1 == number:
            raise error
        return real(self, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "optim_step", broken)
        yield


def invoke(*command: str):
    return CliRunner().invoke(app, list(command), env={"COLUMNS": "200"})


def only_run() -> Path:
    [run] = Path("runs").iterdir()
    return run


@pytest.mark.parametrize(
    ("error", "code", "state", "told"),
    [
        (RuntimeError("the <b>kernel</b> is gone"), 1, "failed: sft", "RuntimeError: the <b>kernel</b> is gone"),
        (MemoryError("no room"), 2, "failed: sft", "lower engine.micro_batch_tokens"),
        (KeyboardInterrupt(), 130, "interrupted: sft", ""),
    ],
)
def test_a_run_that_ends_badly_says_how_and_why(error, code, state, told):
    with breaking(2, error):
        result = invoke("train", "small.yaml")
    assert result.exit_code == code, result.output
    listed = " ".join(invoke("runs").stdout.split())
    assert state in listed and "unfinished" not in listed
    if isinstance(error, RuntimeError):
        assert told in listed
    page = (only_run() / "report.html").read_text()
    status = state.partition(":")[0]
    assert f'<span class="badge {status}">{status}</span>' in page
    assert told.replace("<", "&lt;").replace(">", "&gt;") in page
    assert invoke("train", "--resume", "last").exit_code == 0
    assert "finished" in invoke("runs").stdout and "error" not in (only_run() / "results.json").read_text()


def test_a_start_that_fails_leaves_no_run_folder():
    for error, code in ((MemoryError("no room"), 2), (RuntimeError("a bug"), 1)):
        with breaking(1, error):
            result = invoke("train", "small.yaml")
        assert result.exit_code == code and "Nothing was trained; runs/" in result.stderr
        assert list(Path("runs").iterdir()) == []


def test_a_resumed_run_that_fails_at_once_stays():
    with breaking(2, RuntimeError("once")):
        invoke("train", "small.yaml")
    for file in (only_run() / "sft").iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with breaking(1, RuntimeError("twice")):
        assert invoke("train", "--resume", "last").exit_code == 1
    assert "twice" in json.loads((only_run() / "results.json").read_text())["sft"]["error"]["text"]


def test_a_second_process_on_a_run_is_refused_and_a_killed_one_is_taken_over():
    command = [sys.executable, "-m", "aurify.cli.main", "train"]
    first = subprocess.Popen([*command, "long.yaml"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: len(list(Path("runs").glob("*/sft/checkpoints/*"))) > 0, first)
        assert "running: sft" in " ".join(invoke("runs").stdout.split())
        rows = len((only_run() / "sft" / "metrics.jsonl").read_text().splitlines())
        refused = invoke("train", "--resume", "last")
        assert refused.exit_code == 2, refused.output
        assert f"process {first.pid} on {socket.gethostname()} has been working in this run" in refused.stderr
        assert "Report" not in refused.stdout
        until(lambda: len((only_run() / "sft" / "metrics.jsonl").read_text().splitlines()) > rows, first)
        first.send_signal(signal.SIGKILL)
        first.wait()
    finally:
        first.kill()
        first.communicate()
    assert "killed: sft" in " ".join(invoke("runs").stdout.split())
    second = subprocess.Popen(
        [*command, "--resume", "last"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: (only_run() / "lock.json").exists() and read_holder() == second.pid, second)
    finally:
        os.kill(second.pid, signal.SIGINT)
        text, _ = second.communicate()
    assert second.returncode == 130 and "Traceback" not in text, text
    steps = [json.loads(line)["step"] for line in (only_run() / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def read_holder() -> int:
    return json.loads((only_run() / "lock.json").read_text())["pid"]


def until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)

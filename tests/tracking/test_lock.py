"""A run folder has one living process at a time."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aurify.errors import UserError
from aurify.tracking.lock import LOCK, find_run_holder, lock_run_folder

HOLD = """
import sys
from pathlib import Path
from aurify.errors import UserError
from aurify.tracking.lock import lock_run_folder
sys.stdin.readline()
try:
    with lock_run_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_pid_and_host_of_the_first(tmp_path):
    first = start(tmp_path)
    try:
        tell(first)
        assert hear(first) == "held"
        said = f"process {first.pid} on {re.escape(socket.gethostname())} has been working in this run since .*stop it$"
        with pytest.raises(UserError, match=said), lock_run_folder(tmp_path):
            raise AssertionError("two at once")
        assert find_run_holder(tmp_path)["pid"] == first.pid, "the first one still has it"
        tell(first)
        first.wait()
        with lock_run_folder(tmp_path):
            assert find_run_holder(tmp_path)["pid"] == os.getpid()
    finally:
        end(first)
    assert find_run_holder(tmp_path) is None and not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, reaped):
    first = start(tmp_path)
    try:
        tell(first)
        assert hear(first) == "held"
        first.kill()
        if reaped:
            first.wait()
        else:  # a zombie: nobody has asked yet how it ended
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        assert (tmp_path / LOCK).exists() and find_run_holder(tmp_path) is None
        with lock_run_folder(tmp_path):
            assert find_run_holder(tmp_path)["pid"] == os.getpid()
    finally:
        end(first)


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    with lock_run_folder(tmp_path):
        held = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(held | {"began": held["began"] - 3600}))
    with lock_run_folder(tmp_path):
        pass


def test_a_process_of_another_host_is_taken_for_alive(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere", "began": 0.0, "since": "then"}))
    with (
        pytest.raises(UserError, match=rf"process 1 on elsewhere .* remove {tmp_path / LOCK}"),
        lock_run_folder(tmp_path),
    ):
        pass
    (tmp_path / LOCK).unlink()
    with lock_run_folder(tmp_path):
        pass


def test_an_error_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_run_folder(tmp_path):
        raise ZeroDivisionError
    with lock_run_folder(tmp_path):
        pass


def test_of_many_that_take_over_a_stale_lock_at_once_one_gets_it(tmp_path):
    with lock_run_folder(tmp_path):
        held = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(held | {"began": 0.0}))
    crowd = [start(tmp_path) for _ in range(8)]
    try:
        for process in crowd:
            tell(process)
        said = [hear(process) for process in crowd]
    finally:
        end(*crowd)
    assert said.count("held") == 1 and sum("has been working in this run" in text for text in said) == 7

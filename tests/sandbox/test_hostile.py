"""Programs that want out, or want the reward without the work: none of them gets anything, and the host stays as it
was. Every one runs under each kind of sandbox that this machine has.

A program of the first list prints `GOT` and what it got as soon as it got something; it is watched from outside too:
a canary file, the folder around it, the processes, the time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from aurify.sandbox import sandbox, view
from aurify.sandbox.sandbox import Limits, run_script, run_tests

LIMITS = Limits(seconds=0.5, memory_mb=256, disk_mb=4, output_kb=64)


def programs(name):
    """title -> program, from a file in which each stands below a line `#### title`."""
    text = (Path(__file__).parent / "hostile" / f"{name}.txt").read_text()
    parts = [part.partition("\n") for part in ("\n" + text).split("\n#### ")[1:]]
    return {title: program for title, _, program in parts}


ESCAPES, EXHAUSTING, CHEATS = programs("escapes"), programs("exhausting"), programs("cheats")
PREFACE = ESCAPES.pop("preface")
TESTS = [
    "assert add(2, 3) == 5",
    "assert abs(add(10, -4) - 6) < 1e-9 and add(10, -4) != 5",
    "def test_more():\n    assert add('a', 'b') == 'ab'",
    "import unittest\nclass Adding(unittest.TestCase):\n    def test_it(self): self.assertEqual(add(2, 3), 5)",
    "import pytest\n@pytest.mark.parametrize('a', [2, 4])\ndef test_each(a):\n    assert add(a, 1) == a + 1",
    "import pytest\ndef test_near():\n    assert add(2, 0.5) == pytest.approx(2.5)",
    "def examples():\n    '''\n    >>> add(2, 3)\n    5\n    '''",
    "def check(candidate):\n    assert candidate(2, 3) == 5",
]
CALLS = [([2, 3], {}, [5]), ([[2], [3]], {}, [[2, 3]]), ([], {"a": 1.5, "b": 1}, [2.5])]


def working(kind):
    if kind == "bubblewrap" and view.find_bubblewrap() is None:
        return False
    return sandbox.explain_sandbox_failure(kind) == ""


BACKENDS = [kind for kind in ("bubblewrap", "landlock") if working(kind)]


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    """Processes of this test are told from those of others on this machine: `children` looks for the mark."""
    monkeypatch.setattr(sandbox, "BOOT", f"{sandbox.BOOT}# {uuid.uuid4().hex}\n")


@pytest.fixture(params=BACKENDS)
def kind(request, monkeypatch):
    monkeypatch.setattr(sandbox, "find_sandbox_backend", lambda: request.param)
    return request.param


@pytest.fixture
def host(tmp_path, monkeypatch):
    """What must not change: a file, its folder, a server that nobody may reach, and a process."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    canary.chmod(0o600)
    monkeypatch.setenv("A_SECRET", "canary")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        before = state(canary)
        victim = subprocess.Popen(["sleep", "60"])
        running = children()
        try:
            yield {
                "CANARY": str(canary),
                "FOLDER": str(tmp_path),
                "HOME": os.path.expanduser("~"),
                "PORT": server.getsockname()[1],
                "HIDDEN": hidden(),
                "PID": victim.pid,
            }
            assert canary.read_text() == "alive"
            assert state(canary) == before
            assert victim.poll() is None
            with pytest.raises(BlockingIOError):
                server.accept()
            assert gone(running)
        finally:
            victim.kill()
            victim.wait()


def state(canary):
    status = os.stat(canary)
    settings = Path("/proc/sys/kernel/core_pattern").read_text()
    return status.st_mode, status.st_uid, status.st_mtime, status.st_size, os.listdir(canary.parent), settings


def hidden():
    """What lies in the home folder, but for the interpreter, which may."""
    home = Path.home()
    own = Path(view.find_sandbox_interpreter())
    return set(os.listdir(home)) - ({own.relative_to(home).parts[0]} if own.is_relative_to(home) else set())


def children():
    """Every process that came from a sandbox of this test."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if sandbox.BOOT.encode() in words:
                found.add(int(entry.name))
    return found


def gone(before):
    """Whether all processes of sandboxes have ended; the kernel may take a moment to clear away."""
    deadline = time.monotonic() + 3
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    return not children() - before


@pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(name, kind, host):
    values = host | {"NAMESPACES": kind == "bubblewrap"}
    program = (
        "".join(f"{key} = {value!r}\n" for key, value in values.items()) + PREFACE + ESCAPES[name] + "\nprint('END')\n"
    )
    outcome = run_script(program, limits=Limits(5.0, 256, 4, 64))
    assert "GOT" not in outcome.stdout, outcome
    assert outcome.stdout.endswith("END\n")  # it has tried all it wanted to


@pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
@pytest.mark.parametrize("name", EXHAUSTING)
def test_nothing_is_used_up(name, kind, host):
    started = time.monotonic()
    outcome = run_script(EXHAUSTING[name], limits=LIMITS)
    assert time.monotonic() - started < LIMITS.wall_seconds + 2
    assert len(outcome.stdout) <= LIMITS.output_kb * 1024 and len(outcome.stderr) <= LIMITS.output_kb * 1024
    assert "GOT" not in outcome.stdout and "SyntaxError: invalid" not in outcome.stderr, outcome


@pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
@pytest.mark.parametrize("name", CHEATS)
def test_no_reward_without_the_work(name, kind, host):
    started = time.monotonic()
    report = run_tests(CHEATS[name], TESTS, calls=CALLS, limits=LIMITS)
    assert report.passed == 0, report
    assert time.monotonic() - started < LIMITS.wall_seconds + 2


@pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
def test_the_honest_program_passes(kind, host):
    """The same tests, so that the refusals above mean something."""
    report = run_tests("import os, time\ndef add(a, b):\n    print(1)\n    return a + b", TESTS[:3])
    assert (report.passed, report.total, report.problem) == (3, 3, "")
    report = run_tests("def add(a, b):\n    return a + b", TESTS, calls=CALLS)
    assert (report.passed, report.total, report.problem) == (12, 12, "")


@pytest.mark.skipif(not BACKENDS, reason="neither bubblewrap nor Landlock works here")
def test_a_sandbox_dies_with_its_owner(kind, host):
    """kill -9 of the process that runs sandboxes leaves none behind."""
    lines = (
        "from aurify.sandbox import sandbox",
        "from aurify.sandbox.sandbox import Limits, start_sandbox",
        f"sandbox.BOOT = {sandbox.BOOT!r}",
        "order = {'role': 'script', 'code': 'import time; time.sleep(60)'}",
        f"process = start_sandbox(order, Limits(), using={kind!r})",
        "print(process.pid, flush=True)",
        "process.wait()",
    )
    before = children()
    environment = os.environ | {"PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout.readline().strip().isdigit()
        time.sleep(0.3)
        assert children() - before
        owner.send_signal(signal.SIGKILL)
    assert gone(before)

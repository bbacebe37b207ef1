"""Runs code that nobody has read: no network, no files of the host, no new processes; bounded time, memory, disk and
output.

With bubblewrap (`find_bubblewrap`) a run has its own view of files, processes, network and users: it can read the
interpreter's folders, write a small /tmp in memory, and nothing else. Some distributions and containers forbid that, or
have no bubblewrap. There the kernel's Landlock takes over, with the same limits and filter of system calls: the
interpreter's folders to read, nothing to write. A process could then still learn whether a path exists. Without either,
no code runs.

This is our own code because no library does it: those that were looked at need Docker, are young, or run another
Python."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import marshal
import math
import os
import selectors
import socket
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from aurify.bounds import Checked, Ge, PositiveInt
from aurify.errors import UserError
from aurify.sandbox.seccomp import is_seccomp_supported, seccomp_filter
from aurify.sandbox.view import (
    DEVICES,
    bubblewrap_command,
    find_bubblewrap,
    find_sandbox_interpreter,
    list_sandbox_packages,
    list_sandbox_paths,
)

Backend = Literal["bubblewrap", "landlock"]
BOOT = """\
import marshal, sys, types
load = marshal.load(open(int(sys.argv[1]), "rb"))
for name, code in load["modules"].items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(code, module.__dict__)
module.main(load["options"])
"""
TESTING = ["checks", "texts", "pytest_stand_in", "items", "runner"]  # what the side of the tests needs beside the rest
MEND = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap), or use a kernel with Landlock (Linux 5.13)"


class SandboxError(RuntimeError):
    """The sandbox itself did not work; it says nothing about the code."""


@dataclass(frozen=True)
class Limits(Checked):
    seconds: Annotated[float, Ge(0.1)] = 5.0  # of processor time; on the clock twice as much, as others may be busy
    memory_mb: Annotated[int, Ge(64)] = 512
    disk_mb: PositiveInt = 16  # of /tmp, which is in memory
    output_kb: PositiveInt = 256

    @property
    def wall_seconds(self) -> float:
        return 2 * self.seconds


@dataclass(frozen=True)
class Outcome:
    stdout: str
    stderr: str
    returncode: int
    stopped: Literal["", "time", "output"] = ""


def run_script(code: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Runs a program as `python program.py < stdin` would."""
    process = start_sandbox({"role": "script", "code": code}, limits, stdin=stdin.encode())
    return read_sandbox_outcome(process, limits)


@dataclass(frozen=True)
class TestReport:
    passed: int
    total: int
    problem: str = ""  # the first thing that went wrong


def run_tests(
    code: str,
    tests: Sequence[str] = (),
    *,
    calls: Sequence[tuple[list[Any], dict[str, Any], list[Any]]] = (),
    setup: str = "",
    entry_point: str | None = None,
    hint: str | None = None,
    limits: Limits = Limits(),
) -> TestReport:
    """Runs tests of the program as pytest and unittest would (see `runner.py`). ValueError: the tests are broken.

    calls: arguments, named arguments, and the values that the function may return. setup: code that the tests need.
    entry_point: the function that calls and `check(candidate)` are for. hint: its name, if the program has it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = {"role": "program", "code": code, "descriptor": theirs.fileno()}
        program = start_sandbox(options, limits, inherited=[theirs.fileno()], quiet=True)
        try:
            theirs.close()
            options = {"role": "tests", "tests": list(tests), "calls": list(calls), "setup": setup}
            options |= {"entry_point": entry_point, "hint": hint, "descriptor": ours.fileno()}
            judge = start_sandbox(options, limits, inherited=[ours.fileno()])
            ours.close()
            outcome = read_sandbox_outcome(judge, limits)
        finally:
            program.kill()
            program.wait()
    return read_test_report(outcome)


def read_test_report(outcome: Outcome) -> TestReport:
    """From the lines that the side of the tests has written. What it had no time for has not passed."""
    lines = [json.loads(line) for line in outcome.stdout.splitlines() if line.endswith("}")]
    said: dict[str, Any] = {}
    for line in lines:
        said |= line
    if "ready" not in said:
        raise SandboxError(f"the tests did not start (exit code {outcome.returncode}): {outcome.stderr.strip()[-500:]}")
    if "broken" in said:
        raise ValueError(f"the tests are broken: {said['broken']}")
    results = [line for line in lines if "test" in line]
    problems = [f"{line['test']}: {line['problem']}" for line in results if not line["passed"]]
    passed, total = sum(line["passed"] for line in results), len(results)
    if "done" not in said:
        problems.append(said.get("refused") or f"stopped: {outcome.stopped or f'exit code {outcome.returncode}'}")
        total = max(said.get("count", 0), passed + 1)
    return TestReport(passed, total, (problems or [""])[0])


def start_sandbox(
    options: dict[str, Any],
    limits: Limits,
    *,
    stdin: bytes = b"",
    inherited: Sequence[int] = (),
    quiet: bool = False,
    using: Backend | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a role of `inside.py`. quiet: its output goes nowhere."""
    chosen = using or find_sandbox_backend()
    options = options | {
        "memory_mb": limits.memory_mb,
        "cpu_seconds": math.ceil(limits.seconds),
        "disk_mb": limits.disk_mb,
        "landlock": chosen == "landlock",
        "readable": [*list_sandbox_paths(), *DEVICES],
        "packages": list_sandbox_packages(),
        "filter": seccomp_filter(namespaces=False).hex() if chosen == "landlock" else "",
    }
    order = seal_sandbox_file(marshal.dumps({"modules": compile_sandbox_modules(options["role"]), "options": options}))
    given = seal_sandbox_file(stdin)
    kernel_filter = seal_sandbox_file(seccomp_filter(namespaces=True))
    command = [find_sandbox_interpreter(), "-I", "-S", "-B", "-c", BOOT, str(order)]
    if chosen == "bubblewrap":
        command = [*bubblewrap_command(limits.disk_mb), "--seccomp", str(kernel_filter), "--", *command]
    try:
        return subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
            pass_fds=[order, kernel_filter, *inherited],
            env={"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HOME": "/tmp"},
            cwd="/",
            start_new_session=True,
        )
    finally:
        for descriptor in (order, given, kernel_filter):
            os.close(descriptor)


def read_sandbox_outcome(process: subprocess.Popen[bytes], limits: Limits) -> Outcome:
    """Reads what the process writes until it ends. Ends it when its time is up or it has written too much."""
    assert process.stdout is not None and process.stderr is not None
    read: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    stopped: Literal["", "time", "output"] = ""
    deadline = time.monotonic() + limits.wall_seconds
    with process, selectors.DefaultSelector() as selector:
        try:
            for stream in read:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and not stopped:
                left = deadline - time.monotonic()
                if left <= 0:
                    stopped = "time"
                for key, _ in selector.select(max(0.0, left)):
                    part = os.read(key.fd, 1 << 16)
                    read[key.fileobj] += part
                    if not part:
                        selector.unregister(key.fileobj)
                if sum(map(len, read.values())) > limits.output_kb * 1024:
                    stopped = "output"
            if not stopped:  # it may have closed its streams and still run
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    stopped = "time"
        finally:
            process.kill()
    stdout, stderr = (bytes(data[: limits.output_kb * 1024]).decode(errors="replace") for data in read.values())
    return Outcome(stdout, stderr, process.returncode, stopped)


def seal_sandbox_file(data: bytes) -> int:
    """A file in memory that nobody can change any more, not even through /proc. Returns its descriptor."""
    descriptor = os.memfd_create("aurify", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@functools.cache
def compile_sandbox_modules(role: str) -> dict[str, types.CodeType]:
    """What runs inside, compiled once. The last module has `main`."""
    more = {"tests": TESTING, "cells": ["cells"]}.get(role, [])
    names = ["confine", "values", "peer", *more, "inside"]
    texts = {f"{__package__}.{name}": (Path(__file__).parent / f"{name}.py").read_text() for name in names}
    return {module: compile(text, module, "exec", dont_inherit=True) for module, text in texts.items()}


@functools.cache
def find_sandbox_backend() -> Backend:
    """The kind of sandbox that works on this machine. Runs something in it to find out."""
    if sys.platform != "linux" or not is_seccomp_supported():
        raise UserError(
            f"running generated code needs a sandbox, which Aurify has for Linux on x86-64 and ARM64 only; this is "
            f"{sys.platform}. Train there, or leave the reward 'code' out"
        )
    problems: list[str] = []
    candidates: list[Backend] = ["bubblewrap", "landlock"]
    for candidate in candidates:
        problem = explain_sandbox_failure(candidate)
        if not problem:
            return candidate
        problems.append(f"{candidate}: {problem}")
    raise UserError(f"running generated code needs a sandbox, and none works here ({'; '.join(problems)}); {MEND}")


def explain_sandbox_failure(candidate: Backend) -> str:
    """Why it does not work here; empty if it does."""
    if candidate == "bubblewrap" and find_bubblewrap() is None:
        return "it is not installed"
    if candidate == "landlock" and ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)) < 1:
        return "this kernel has none"
    limits = Limits(10.0)
    outcome = read_sandbox_outcome(
        start_sandbox({"role": "script", "code": "import fractions; print('ok')"}, limits, using=candidate), limits
    )
    if outcome.stdout == "ok\n":
        return ""
    return outcome.stderr.strip()[-300:] or outcome.stopped or f"exit code {outcome.returncode}"

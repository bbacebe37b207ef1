"""Runs code that nobody has read: no network, no files of the host, no new processes; bounded time, memory, disk and
output.

With bubblewrap (`bwrap`) a run has its own view of files, processes, network and users: the interpreter's folders to
read, a small /tmp in memory to write, and nothing else. Where bubblewrap is missing or may not work (some
distributions and containers forbid user namespaces), the kernel's Landlock takes over: the same filter of system calls
and limits, reading below the interpreter's folders alone, and no writing at all. A process could then still learn
whether a path exists. Without either, code is not run."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import marshal
import math
import os
import selectors
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from aurify.bounds import Checked, Ge, PositiveInt
from aurify.errors import UserError
from aurify.sandbox.seccomp import seccomp_filter, supported

Backend = Literal["bubblewrap", "landlock"]
NOBODY = "65534"
BOOT = """\
import marshal, sys, types
load = marshal.load(open(int(sys.argv[1]), "rb"))
for name, code in load["modules"].items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(code, module.__dict__)
module.main(load["options"])
"""
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
MEND = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap), or use a kernel with Landlock (Linux 5.13)"


class SandboxError(RuntimeError):
    """The sandbox itself did not work; it says nothing about the code."""


@dataclass(frozen=True)
class Limits(Checked):
    # of processor time; on the clock twice as much, since the machine may be busy
    seconds: Annotated[float, Ge(0.1)] = 5.0
    memory_mb: Annotated[int, Ge(64)] = 512
    disk_mb: PositiveInt = 16  # of /tmp, which lies in memory
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
    """Runs a program as a script, as `python program.py < stdin` would."""
    process = start({"role": "script", "code": code}, limits, stdin=stdin.encode())
    return finish(process, limits)


@dataclass(frozen=True)
class TestReport:
    passed: int
    total: int  # 0: the program could not even be loaded
    problem: str = ""  # the first thing that went wrong


def run_tests(
    code: str, tests: Sequence[str], *, setup: str = "", entry_point: str | None = None, limits: Limits = Limits()
) -> TestReport:
    """Runs each test against the program; see `inside.py` for what counts as one. setup: code that the tests need.
    ValueError: the tests themselves are broken."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = {"role": "program", "code": code, "descriptor": theirs.fileno()}
        program = start(options, limits, inherited=[theirs.fileno()], quiet=True)
        try:
            theirs.close()
            options = {"role": "tests", "tests": list(tests), "setup": setup, "entry_point": entry_point}
            options["descriptor"] = ours.fileno()
            judge = start(options, limits, inherited=[ours.fileno()])
            ours.close()
            outcome = finish(judge, limits)
        finally:
            program.kill()
            program.wait()
    return report_of(outcome)


def report_of(outcome: Outcome) -> TestReport:
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
    problems = [line["problem"] for line in results if not line["passed"]]
    if "done" not in said:
        problems.append(said.get("refused") or f"stopped: {outcome.stopped or f'exit code {outcome.returncode}'}")
    return TestReport(sum(line["passed"] for line in results), said.get("count", 0), (problems or [""])[0])


def start(
    options: dict[str, Any],
    limits: Limits,
    *,
    stdin: bytes = b"",
    inherited: Sequence[int] = (),
    quiet: bool = False,
    using: Backend | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a role of `inside.py`. quiet: its output is thrown away."""
    chosen = using or backend()
    options = options | {
        "memory_mb": limits.memory_mb,
        "cpu_seconds": math.ceil(limits.seconds),
        "disk_mb": limits.disk_mb,
        "landlock": chosen == "landlock",
        "readable": [*readable(), *DEVICES],
        "packages": packages(),
        "filter": seccomp_filter(namespaces=False).hex() if chosen == "landlock" else "",
    }
    order = sealed(marshal.dumps({"modules": modules(), "options": options}))
    given = sealed(stdin)
    kernel_filter = sealed(seccomp_filter(namespaces=True))
    command = [interpreter(), "-I", "-S", "-B", "-c", BOOT, str(order)]
    if chosen == "bubblewrap":
        command = [*bubblewrap(limits), "--seccomp", str(kernel_filter), "--", *command]
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


def finish(process: subprocess.Popen[bytes], limits: Limits) -> Outcome:
    """Reads what the process writes until it ends, or has to be ended: by the clock, or because it writes too much."""
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
            if not stopped:  # it may have closed its streams and go on
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    stopped = "time"
        finally:
            process.kill()
    stdout, stderr = (bytes(data[: limits.output_kb * 1024]).decode(errors="replace") for data in read.values())
    return Outcome(stdout, stderr, process.returncode, stopped)


def sealed(data: bytes) -> int:
    """A file in memory that nobody can change any more, not even through /proc."""
    descriptor = os.memfd_create("aurify", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def bubblewrap(limits: Limits) -> list[str]:
    """The part of the command that builds the view. There is no /proc in it: its files are the whole kernel's."""
    command = [
        bwrap() or "bwrap",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # in a user namespace of its own a process of root would still own root's files; `inside.py` becomes nobody
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", NOBODY, "--gid", NOBODY]
    for folder in sorted({str(parent) for path in readable() for parent in Path(path).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # else that of root's home is root's alone
    for path in readable():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.disk_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*command, "--remount-ro", "/"]  # the root is a tmpfs too, without a size


@functools.cache
def modules() -> dict[str, types.CodeType]:
    """What runs inside, compiled once; the last one has `main`."""
    names = {name: f"{__package__}.{name}" for name in ("confine", "peer", "inside")}
    texts = {module: (Path(__file__).parent / f"{name}.py").read_text() for name, module in names.items()}
    return {module: compile(text, module, "exec", dont_inherit=True) for module, text in texts.items()}


@functools.cache
def packages() -> list[str]:
    """Where the base interpreter's own packages lie: NumPy, say, if it is installed there."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    found = [
        *(sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")),
        "/usr/lib/python3/dist-packages",
    ]
    return [path for path in dict.fromkeys(found) if any(path.startswith(f"{folder}/") for folder in readable())]


@functools.cache
def interpreter() -> str:
    """That of the virtual environment's base: what people have installed for themselves stays outside."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = Path(sys.base_exec_prefix) / "bin" / version
    return os.path.realpath(path if path.exists() else sys.executable)


@functools.cache
def readable() -> tuple[str, ...]:
    """What the interpreter needs: itself, its library, and the system's shared libraries."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    own = [interpreter(), *(sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib"))]
    own += [str(library) for library in (Path(sys.base_exec_prefix) / "lib").glob("libpython*")]
    found: list[str] = []
    for path in (*SYSTEM, *own):
        below = any(path == other or path.startswith(f"{other}/") for other in found)
        if os.path.lexists(path) and not below:
            found.append(path)
    return tuple(found)


@functools.cache
def bwrap() -> str | None:
    """bubblewrap's program: of the system, or beside this environment's interpreter."""
    return shutil.which("bwrap") or shutil.which("bwrap", path=os.path.join(sys.prefix, "bin"))


@functools.cache
def backend() -> Backend:
    """What works on this machine, found out by running something."""
    if sys.platform != "linux" or not supported():
        raise UserError(
            f"running generated code needs a sandbox, which Aurify has for Linux on x86-64 and ARM64 only; this is "
            f"{sys.platform}. Train there, or leave the reward 'code' out"
        )
    problems: list[str] = []
    candidates: list[Backend] = ["bubblewrap", "landlock"]
    for candidate in candidates:
        problem = works(candidate)
        if not problem:
            return candidate
        problems.append(f"{candidate}: {problem}")
    raise UserError(f"running generated code needs a sandbox, and none works here ({'; '.join(problems)}); {MEND}")


def works(candidate: Backend) -> str:
    """What is wrong with it here; empty if it runs a program."""
    if candidate == "bubblewrap" and bwrap() is None:
        return "it is not installed"
    if candidate == "landlock" and ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)) < 1:
        return "this kernel has none"
    limits = Limits(10.0)
    outcome = finish(
        start({"role": "script", "code": "import fractions; print('ok')"}, limits, using=candidate), limits
    )
    if outcome.stdout == "ok\n":
        return ""
    return outcome.stderr.strip()[-300:] or outcome.stopped or f"exit code {outcome.returncode}"

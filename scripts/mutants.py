"""Plants faults in algorithms, loops and engine, one at a time, and sees whether the tests notice.

    python scripts/mutants.py                 # all of them, two at a time
    python scripts/mutants.py kto gspo        # those whose name or file contains a word
    python scripts/mutants.py --list

A fault is a piece of text that stands once in a file, and what takes its place. It is planted in a copy of src, beside
a copy of the tests as they are at the start, never in the working tree; the tests that are named for it run there with
-x, within a time limit. One that passes them all has survived: a test is missing. First of all the same tests run
without a fault: they must pass, or nothing is proved. A fault whose text is not found any more is an error, so that
this list follows the code.

Each fault runs in a fork of a process that has imported torch and transformers, and costs a few seconds."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from mutants_list import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "recipes", "examples")
POLL = 0.05  # seconds


@dataclass
class Trial:
    fault: Fault
    folder: Path
    pid: int
    began: float


def take_copy(base: Path) -> None:
    """The working tree as it is now: whoever goes on editing it changes no result."""
    for name in COPIED:
        shutil.copytree(ROOT / name, base / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", base)


def plant(base: Path, folder: Path, fault: Fault) -> None:
    """src with the fault in it; whatever is not changed is a link."""
    shutil.copytree(base / "src", folder / "src")
    for path in base.iterdir():
        if path.name != "src":
            (folder / path.name).symlink_to(path)
    if fault.old:
        text = (base / fault.path).read_text(encoding="utf-8")
        (folder / fault.path).write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def check_list(chosen: list[Fault]) -> None:
    for fault in chosen:
        num = (ROOT / fault.path).read_text(encoding="utf-8").count(fault.old)
        if num != 1:
            raise SystemExit(f"{fault.path}: the text of {fault.name!r} stands there {num} times; mend the list")


def start(fault: Fault, base: Path, folder: Path) -> Trial:
    plant(base, folder, fault)
    pid = os.fork()
    if pid == 0:
        os.setsid()  # its own group, so that a time limit ends its children too
        output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 70
        try:
            code = run_tests(fault, folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return Trial(fault, folder, pid, time.monotonic())


def run_tests(fault: Fault, folder: Path) -> int:
    import pytest

    assert "aurify" not in sys.modules, "the faulty copy must be the first to be imported"
    sys.path.insert(0, str(folder / "src"))
    os.environ["PYTHONPATH"] = str(folder / "src")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they would warn of what is imported already
    os.chdir(folder)
    names = [str(folder / "tests" / test) for test in fault.tests]
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", f"--rootdir={folder}"]
    code = int(pytest.main([*quiet, *(["-k", fault.only] if fault.only else []), *names]))
    import aurify

    assert Path(aurify.__file__).is_relative_to(folder), "the tests looked at another copy"
    return code


def finish(trial: Trial, limit: float) -> str | None:
    """How it ended; None while it runs."""
    done, status = os.waitpid(trial.pid, os.WNOHANG)
    if not done:
        if time.monotonic() - trial.began < limit:
            return None
        os.killpg(trial.pid, signal.SIGKILL)
        os.waitpid(trial.pid, 0)
        return "killed (time limit)"
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "SURVIVED"
    if code == 1:
        return "killed"
    print((trial.folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-3000:])
    return f"BROKEN (pytest ended with {code})"


def stop(running: list[Trial]) -> None:
    for trial in running:
        try:
            os.killpg(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)
        except (ProcessLookupError, ChildProcessError):  # it has ended
            pass


def preload() -> None:
    """What every test imports, but nothing of Aurify. No thread may run when a process forks."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "algorithms")]
    import pytest  # noqa: F401
    import torch
    import transformers
    from transformers import LlamaForCausalLM  # noqa: F401

    assert transformers
    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults whose name or file contains one of them")
    parser.add_argument("--jobs", type=int, default=2, help="so many at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for the tests of a fault")
    parser.add_argument("--list", action="store_true", help="print the faults and do nothing")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if not options.words or any(w in f.name + f.path for w in options.words)]
    if options.list:
        for fault in chosen:
            print(f"{fault.path}: {fault.name}")
        return 0
    check_list(chosen)
    preload()
    tests = tuple(sorted({test for fault in chosen for test in fault.tests}))
    control = Fault("no fault", "src/aurify/types.py", "", "", tests)
    waiting, running, bad = [control, *chosen], [], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        base = Path(scratch) / "base"
        take_copy(base)
        while waiting or running:
            while waiting and len(running) < options.jobs:
                fault = waiting.pop(0)
                folder = Path(scratch) / str(len(waiting))
                folder.mkdir()
                running.append(start(fault, base, folder))
            time.sleep(POLL)
            for trial in list(running):
                outcome = finish(trial, options.limit * (10 if trial.fault is control else 1))
                if trial.fault is control and outcome in ("SURVIVED", None):
                    running = [other for other in running if outcome is None or other is not trial]
                    continue
                if trial.fault is control:
                    stop(running)
                    print((trial.folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-3000:])
                    raise SystemExit("the tests fail without a fault")
                if outcome is not None:
                    running.remove(trial)
                    shutil.rmtree(trial.folder, ignore_errors=True)
                    bad += [] if outcome.startswith("killed") else [f"{trial.fault.path}: {trial.fault.name}"]
                    print(f"{outcome:9} {time.monotonic() - trial.began:5.1f}s  {trial.fault.path}: {trial.fault.name}")
                    sys.stdout.flush()
    print(f"{len(bad)} survivors of {len(chosen)} in {time.monotonic() - began:.0f}s")
    for line in bad:
        print(f"  {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

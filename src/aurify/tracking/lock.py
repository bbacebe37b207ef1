"""One process at a time works in a run folder. Two would mix their records and delete each other's checkpoints."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from aurify.errors import UserError
from aurify.tracking import jsonl

LOCK = "lock.json"
SAME_START = 60.0  # seconds: the time at which a process began is computed from a clock that may be set


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Raises where a living process holds the folder. The lock of a dead one is taken over."""
    from filelock import FileLock

    file = folder / LOCK
    with FileLock(folder / ".lock"):  # of two that come at once, one looks first
        if holder := find_run_holder(folder):
            known = holder["host"] == socket.gethostname()
            mend = "wait for it or stop it" if known else f"wait for it or stop it. If it is gone, remove {file}"
            raise UserError(
                f"{folder}: process {holder['pid']} on {holder['host']} has been working in this run since "
                f"{holder['since']}; {mend}"
            )
        process = psutil.Process()
        began, since = process.create_time(), time.strftime("%Y-%m-%d %H:%M:%S")
        jsonl.write_run_file(file, {"pid": process.pid, "host": socket.gethostname(), "began": began, "since": since})
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def find_run_holder(folder: Path) -> dict[str, Any] | None:
    """Who works in a folder. A process of another host counts as alive: nobody here can tell."""
    holder = jsonl.read_run_file(folder / LOCK)
    if not holder:
        return None
    if holder["host"] != socket.gethostname():
        return holder
    try:
        process = psutil.Process(holder["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        return holder if alive and abs(process.create_time() - holder["began"]) < SAME_START else None
    except psutil.NoSuchProcess:
        return None

"""Starts servers of OpenEnv for tests (environments/openenv_server.py), and ends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = str(Path(__file__).parent / "environments" / "openenv_server.py")


@contextmanager
def open_servers(folder: Path) -> Iterator[Callable[..., Any]]:
    """A function that starts one; all of them end with the block."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(kind: str, max_sessions: int = 8) -> tuple[str, Path, subprocess.Popen[bytes]]:
        """Its address, its log and its process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder / f"{kind}-{port}.log"
        log.touch()
        process = subprocess.Popen(
            [sys.executable, SERVER, kind, str(port), str(max_sessions)],
            env={**os.environ, "OPENENV_LOG": str(log)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        for _ in range(6000):  # five minutes: its package takes ten seconds of a whole core to import
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}", log, process
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.wait()


def count_sessions(log: Path) -> tuple[int, int]:
    """Episodes that began, and sessions that ended, once the last of them has."""
    deadline = time.monotonic() + 10
    while (lines := log.read_text().split()).count("reset") > lines.count("close") and time.monotonic() < deadline:
        time.sleep(0.05)
    return lines.count("reset"), lines.count("close")

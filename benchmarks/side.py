"""One side of a benchmark in its own process: it loads, says "ready", then does one step each time it is told to.

The parent lets the sides of a case take turns (A B A B ...), so that both meet the same weather on the machine. Their
messages go over the process's real stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Step = Callable[[], dict[str, float]]  # does one step, returns what it counted: tokens, and anything worth a look


class Channel:
    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        print(json.dumps(message), file=self.out, flush=True)

    def wait(self) -> str:
        """The next command: "step", "count" (a step whose FLOPs are counted) or "quit"."""
        return sys.stdin.readline().strip() or "quit"

    def quit(self) -> None:
        os._exit(0)  # a trainer in the middle of its loop has no other way out

    @contextmanager
    def step(self) -> Iterator[dict[str, float]]:
        """Waits for a command, measures what happens inside, and sends it with what was put into the dictionary."""
        command = self.wait()
        if command == "quit":
            self.quit()
        counted: dict[str, float] = {}
        with flop_counter(command == "count") as total:
            synchronise()
            begin = time.perf_counter()
            yield counted
            synchronise()
            seconds = time.perf_counter() - begin
        self.send(seconds=seconds, flops=total(), peak_bytes=peak_memory(), **counted)


def serve(channel: Channel, step: Step) -> None:
    channel.send(ready=True)
    while True:
        with channel.step() as counted:
            counted.update(step())


@contextmanager
def flop_counter(active: bool) -> Iterator[Callable[[], float]]:
    """Counts the matrix products and attention that really run, forward and backward, in this thread."""
    if not active:
        yield lambda: 0.0
        return
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    num = torch.get_num_threads()
    torch.set_num_threads(1)  # it counts in this thread alone: no rows side by side
    with FlopCounterMode(display=False) as counter:
        yield lambda: float(counter.get_total_flops())
    torch.set_num_threads(num)


def synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """The most that was resident at once: of the GPU where there is one, else of this process, loading included."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""Several pieces of work side by side, each with cores of its own.

Cores that share every product wait for each other after each, and longer when anything else runs on the machine. If
work falls into independent parts of some size, one part for each core is faster: one computes while another is between
two products."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

M_ARENA_MAX = -8  # of mallopt
starting = threading.Lock()


class Cores:
    """`parts` threads that divide torch's cores among them. A function that needs thread-local settings, such as the
    grad mode, must set them itself."""

    def __init__(self, parts: int, name: str) -> None:
        import torch

        self.parts = parts
        self.pool = ThreadPoolExecutor(parts, name)
        all_there = threading.Barrier(parts)
        with starting:
            num = torch.get_num_threads()

            def begin() -> None:
                torch.get_num_threads()  # a new thread takes over torch's number when it first asks
                torch.set_num_threads(max(num // parts, 1))
                all_there.wait()

            try:
                for started in [self.pool.submit(begin) for _ in range(parts)]:
                    started.result()
            finally:
                torch.set_num_threads(num)  # torch has one number for all threads to come

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], window: int | None = None
    ) -> Iterator[Result]:
        """Results in the order of `items`. window: the most that are under way, or done and not yet taken. When one
        fails, the others have ended before the error is raised."""
        coming = iter(items)
        futures = deque(self.pool.submit(function, item) for item in islice(coming, window))
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(self.pool.submit(function, item) for item in islice(coming, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def close(self) -> None:
        self.pool.shutdown()


def limit_library_memory() -> None:
    """For work on a CPU; called when a process begins, before it has threads. glibc otherwise keeps what each thread
    has freed apart, and oneDNN a compiled kernel for each of the last 1,024 shapes, where a row of one length needs
    some 40. Does nothing where the environment says otherwise."""
    import ctypes

    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        set_option(M_ARENA_MAX, 1)

"""Ctrl-C and SIGTERM: a step is done or not done, never half.

The first signal lets the running step end, unless the loop is in a part that changes nothing (sampling), which stops
at once. The loop then writes a checkpoint and raises `Interrupted`. A second signal stops at once; what is lost then
is what `kill -9` loses.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_IGNORED = 3  # signals, while work is being cancelled
ARRIVED = threading.Event()  # a signal, inside `interrupt_on_sigterm` and outside of a loop


class Interrupted(KeyboardInterrupt):
    """A loop stopped on request; its checkpoint is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


class Interrupt:
    """Use as a context manager around a loop. Outside of the main thread, where Python allows no handlers, it does
    nothing."""

    def __init__(self) -> None:
        self.requested = False
        self.num_ignored = 0
        self.cancel: Callable[[], object] | None = None  # stops what runs now, where nothing is lost by it
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            if ARRIVED.is_set():
                raise KeyboardInterrupt
            self.previous = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self.cancel is not None and self.num_ignored < MAX_IGNORED:
            self.num_ignored += 1  # the work is being cancelled; an exception in its event loop could hang it
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.cancel is not None:
            self.cancel()
        else:
            print(
                "\nStopping after this step. Ctrl-C again stops at once and loses the steps since the last checkpoint.",
                flush=True,
            )

    async def until_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Does the work, which a signal cancels at once: for work that changes nothing. None if it was cancelled."""
        task = asyncio.ensure_future(work)
        if self.requested:
            task.cancel()
        loop = asyncio.get_running_loop()
        self.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            if not self.requested:
                raise
            return None
        finally:
            self.cancel = None


def run_loop_async(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, in which both signals are a KeyboardInterrupt that cancels the work in an orderly way."""
    with Interrupt() as interrupt:
        result = asyncio.run(interrupt.until_stopped(work))
    if interrupt.requested:
        raise KeyboardInterrupt
    assert result is not None
    return result


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: a KeyboardInterrupt, and not the end of the process without a word. Python
    drops it if it comes in a `__del__`, as during imports. Then the next loop raises it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        ARRIVED.set()
        raise KeyboardInterrupt

    def tell_dropped(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            tell(dropped)

    tell, sys.unraisablehook = sys.unraisablehook, tell_dropped
    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        sys.unraisablehook = tell
        for number, handler in previous.items():
            signal.signal(number, handler)
        ARRIVED.clear()

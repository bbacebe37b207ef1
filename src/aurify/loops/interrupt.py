"""Ctrl-C and SIGTERM: a step is done or not done, never half.

The first signal lets the running step end, unless the loop is in a part that changes nothing (sampling), which stops
at once. The loop then writes a checkpoint and raises `Interrupted`. A second signal stops at once; what is lost then
is what `kill -9` loses.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        self.harmless = False
        self.previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self.previous = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.harmless:
            self.requested = True
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this step. Once more: stop now, and go back to the last checkpoint.", flush=True)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises KeyboardInterrupt immediately: nothing here has to be finished."""
        if self.requested:
            raise KeyboardInterrupt
        self.harmless = True
        try:
            yield
        finally:
            self.harmless = False


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: a KeyboardInterrupt, and not the end of the process without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

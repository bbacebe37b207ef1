"""What the environments of a run share: a browser, a database, a connection.

    browser = SharedResource(open_browser, max_users=4)

    class Browse(MultiTurnEnvironment):
        async def step(self, message):
            async with browser.use() as page:
                ...

It is opened by the first environment that asks for it and stays open until the run ends. Environments run in threads of
their own, so a resource must bear calls from several threads, or have one user at a time. One that belongs to an event
loop goes with environments that say `threaded = False`."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from aurify.errors import UserError
from aurify.threads import settle_call

log = logging.getLogger("aurify")
T = TypeVar("T")
WAIT_SECONDS = 0.005  # between two looks; locks of threads cannot be awaited


class SharedResource(Generic[T]):
    """open: makes the resource; plain or async. max_users: at the same time; others wait, and what they wait counts for
    their time limit. close: called at the end of the run; None takes its method `close`, if it has one."""

    def __init__(self, open: Callable[[], Any], max_users: int = 8, close: Callable[[T], Any] | None = None) -> None:
        if max_users < 1:
            raise UserError(f"SharedResource: max_users is {max_users}; at least 1 is needed")
        self._open, self._close = open, close
        self._users, self._opening = threading.Semaphore(max_users), threading.Lock()
        self._opened: list[T] = []  # one, or none yet

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """Where opening it fails, the next one who asks tries again."""
        await acquire_shared(self._users)
        try:
            await acquire_shared(self._opening)
            try:
                if not self._opened:
                    self._opened.append(await settle_call(self._open))
                    OPEN.append(self)
            finally:
                self._opening.release()
            yield self._opened[0]
        finally:
            self._users.release()

    async def close(self) -> None:
        """The next use opens it again."""
        while self._opened:
            resource = self._opened.pop()
            close = self._close or (lambda resource: getattr(resource, "close", lambda: None)())
            await settle_call(close, resource)


OPEN: list[SharedResource[Any]] = []


async def acquire_shared(lock: threading.Lock | threading.Semaphore) -> None:
    while not lock.acquire(blocking=False):
        await asyncio.sleep(WAIT_SECONDS)


def close_shared() -> None:
    """Closes all that are open. What goes wrong is told, and stops nothing."""
    while OPEN:
        try:
            asyncio.run(OPEN.pop().close())
        except Exception as error:
            log.warning("closing a shared resource raised %s: %s", type(error).__name__, error)


atexit.register(close_shared)

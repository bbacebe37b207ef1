"""Threads for code of others that may block, or never return: environments and rewards.

A thread cannot be stopped. If a call takes longer than its limit, it counts as failed and its thread is left alone. All
threads are daemons, so that the process can end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import resource
import threading
from collections.abc import Awaitable, Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

from aurify.errors import UserError

T = TypeVar("T")


class TimeLimit(UserError):
    """A call took too long."""


async def wait_for(work: Awaitable[T], seconds: float | None, what: str) -> T:
    """The result of `work`, which is cancelled at the limit. Unlike asyncio's function, it does not wait for cancelled
    work, and lets a TimeoutError of the work itself pass."""
    future = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({future}, timeout=seconds)
    except asyncio.CancelledError:
        future.cancel()
        raise
    if not done:
        future.cancel()
        raise TimeLimit(f"{what} took longer than {seconds:g} seconds")
    return future.result()


async def settle(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, plain or async."""
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


class Room:
    """A thread with an event loop of its own, for the methods of one environment."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.late = False  # a call was given up, and may still be running
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None, what: str) -> T:
        async def begun() -> T:
            return await work()

        running = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(begun(), self.loop))
        try:
            return await wait_for(running, seconds, what)
        except (TimeLimit, asyncio.CancelledError):
            self.late = True
            raise

    def leave(self) -> None:
        """Ends the thread once it has nothing to do."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self.loop.close()


class Worker:
    """A thread that makes calls one after the other, for functions that may not run side by side."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: SimpleQueue[Callable[[], None]] | None = None  # of the thread that works now

    async def run(self, function: Callable[[], T], seconds: float | None, what: str) -> T:
        """Only one task may call it at a time: the limit counts from the beginning of the call."""
        if self.calls is None:
            self.calls = SimpleQueue()
            threading.Thread(target=make_calls, args=(self.calls,), name=self.name, daemon=True).start()
        try:
            return await wait_for(queued(self.calls, function), seconds, what)
        except (TimeLimit, asyncio.CancelledError):
            self.close()  # the next call finds another thread
            raise

    def close(self) -> None:
        if self.calls is not None:
            self.calls.put(end_thread)
            self.calls = None

    def __del__(self) -> None:
        self.close()


async def in_thread(function: Callable[[], T], seconds: float | None, what: str) -> T:
    """One call in a thread of its own."""
    worker = Worker("aurify-call")
    try:
        return await worker.run(function, seconds, what)
    finally:
        worker.close()


def queued(calls: SimpleQueue[Callable[[], None]], function: Callable[[], T]) -> asyncio.Future[T]:
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def tell(setter: Callable[[Any], None], value: Any) -> None:
        def unless_done() -> None:
            if not future.done():
                setter(value)

        with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
            loop.call_soon_threadsafe(unless_done)

    def work() -> None:
        try:
            result = context.run(function)
        except StopIteration as error:  # a future cannot hold it
            tell(future.set_exception, RuntimeError(f"StopIteration: {error}"))
        except BaseException as error:
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    calls.put(work)
    return future


def allow_open_files(num: int) -> None:
    """Raises the limit of this process to `num`, or as far as the system lets it. Many systems begin with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num if hard == resource.RLIM_INFINITY else min(num, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class EndThread(Exception):
    pass


def end_thread() -> None:
    raise EndThread


def make_calls(calls: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        try:
            calls.get()()
        except EndThread:
            return


class PerLoop:
    """A semaphore for each event loop, since they cannot be shared."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.loop: asyncio.AbstractEventLoop | None = None
        self.semaphore = asyncio.Semaphore(num)

    def get(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            self.loop, self.semaphore = loop, asyncio.Semaphore(self.num)
        return self.semaphore

"""An interpreter in the sandbox that lives from call to call, for one trajectory: variables, imports, functions stay.

The code can do to its interpreter whatever it likes. If that ends, the next call starts another, and an answer says
that state is lost. The code can also forge the end of a call, which gains it nothing: it may print what it wants
anyway."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import socket
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor

from aurify.sandbox.cells import MAX_CODE, READY, TOKEN_BYTES
from aurify.sandbox.sandbox import Limits, SandboxError, start

START_SECONDS = 60.0  # many may start at once, on a busy machine
LOST = "variables, imports and functions are lost"


class SessionEnded(Exception):
    """The interpreter ended during a call. Its text says why, and what was printed until then."""


class Output:
    """What a call prints. It keeps a beginning and an end, since errors stand at the end."""

    def __init__(self, max_bytes: int) -> None:
        self.max_head, self.max_tail = max_bytes - max_bytes // 4, max_bytes // 4
        self.head, self.tail, self.num_bytes = bytearray(), bytearray(), 0

    def read(self, descriptor: int) -> bytes | None:
        """Reads a part; it is empty at the end of the stream, and None where nothing is there yet."""
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return None
        self.num_bytes += len(part)
        room = self.max_head - len(self.head)
        self.head += part[:room]
        self.tail = (self.tail + part[room:])[-self.max_tail :]
        return part

    def text(self) -> str:
        missing = self.num_bytes - len(self.head) - len(self.tail)
        mark = f"\n[... {missing} bytes are left out ...]\n".encode() if missing else b""
        return (self.head + mark + self.tail).decode(errors="replace").removesuffix("\n")


class PythonSession:
    """seconds: on the clock, for each call. limits: their seconds of processor time are for the life of an interpreter,
    their output is that of a call. ipython: `%magics` and `!commands` too. One event loop at a time may use it."""

    def __init__(self, seconds: float, limits: Limits, ipython: bool = False) -> None:
        self.seconds, self.limits, self.ipython = seconds, limits, ipython
        self.lock = asyncio.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.lost = False  # state was lost, and no answer has said so

    async def run(self, code: str) -> str:
        """What the code prints, with its last value and errors. SessionEnded: the interpreter did not survive it.
        ValueError: the code is too long."""
        data = code.encode(errors="replace")
        if len(data) > MAX_CODE:
            raise ValueError(f"the code has {len(data)} bytes; at most {MAX_CODE} are allowed")
        async with self.lock:
            if self.process is not None and self.process.poll() is not None:  # it ended after its last answer
                self._lose()
            output = Output(self.limits.output_kb * 1024)
            try:
                if self.process is None:
                    await self._start()
                problem = await self._call(data, output)
            except BaseException:  # cancelled: nobody waits for the answer
                self._lose()
                raise
            if problem:
                self.close()
                self.lost = False
                printed = f"\nPrinted until then:\n{output.text()}" if output.num_bytes else ""
                raise SessionEnded(f"{problem}; {LOST}, and the next call starts afresh{printed}")
            note = f"(The interpreter had ended; {LOST}.)\n" if self.lost else ""
            self.lost = False
            return note + output.text()

    def close(self) -> None:
        """Ends the interpreter. A later call would start another."""
        if self.process is not None:
            self.process = None
            self.end()

    def _lose(self) -> None:
        self.lost = True
        self.close()

    async def _start(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            options = {"role": "cells", "descriptor": theirs.fileno(), "ipython": self.ipython}
            starting = open_sandbox_thread().submit(start, options, self.limits, inherited=[theirs.fileno()])
            self.process = starting.result()
        self.end = weakref.finalize(self, end_interpreter, self.process, self.control)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.control.setblocking(False)
        os.set_blocking(self.process.stdout.fileno(), False)
        output = Output(1024)
        try:
            ready = await self._wait(READY, output, START_SECONDS)
        except TimeoutError:
            raise SandboxError(f"Python did not start within {START_SECONDS:g} seconds") from None
        if not ready:
            errors = self.process.communicate()[1].decode(errors="replace").strip()
            raise SandboxError(f"Python did not start: {errors[-500:] or output.text()}")

    async def _call(self, data: bytes, output: Output) -> str:
        """Why the interpreter is of no use any more; empty if it is."""
        assert self.process is not None
        token = secrets.token_bytes(TOKEN_BYTES)
        try:
            self.control.send(token + data)
            if await self._wait(token, output, self.seconds):
                return ""
            return f"the interpreter ended ({await self._describe_end()})"
        except TimeoutError:
            return f"the call took longer than {self.seconds:g} seconds, and the interpreter was ended"
        except OSError as error:  # the code has closed the socket, or does not read from it
            return f"the interpreter does not listen any more ({error.strerror})"

    async def _wait(self, token: bytes, output: Output, seconds: float) -> bool:
        """Collects output until the token comes. False: the interpreter hung up."""
        assert self.process is not None and self.process.stdout is not None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        control, printed = self.control, self.process.stdout.fileno()

        def hear() -> None:  # one message, so that a flood of forged ones does not keep the loop from its other work
            try:
                message = control.recv(1024)
            except OSError:
                message = b""
            if message in (token, b"") and not done.done():
                done.set_result(message == token)

        def read() -> None:
            if output.read(printed) == b"":
                loop.remove_reader(printed)

        loop.add_reader(printed, read)
        loop.add_reader(control, hear)
        try:
            async with asyncio.timeout(seconds):
                return await done
        finally:
            loop.remove_reader(printed)
            loop.remove_reader(control)
            for _ in range(16):  # what is in the pipe was printed before; a thread may go on printing for ever
                if not output.read(printed):
                    break

    async def _describe_end(self) -> str:
        assert self.process is not None
        for _ in range(50):  # it hung up, and will be gone in a moment
            if (code := self.process.poll()) is not None:
                break
            await asyncio.sleep(0.02)
        else:
            return "it hung up"
        number = -code if code < 0 else code - 128  # without and with bubblewrap
        if number == 9:
            return f"killed, as after {self.limits.seconds:g} seconds of processor time"
        return f"signal {number}" if number > 0 else f"exit code {code}"


def end_interpreter(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    with process, control:
        process.kill()


@functools.cache
def open_sandbox_thread() -> ThreadPoolExecutor:
    """The thread that starts interpreters. It lives as long as this process, as Linux ends a sandbox together with the
    thread that has started it."""
    return ThreadPoolExecutor(1, "aurify-sandbox")

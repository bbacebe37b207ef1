"""The conversation between the tests, in one sandbox, and the program, in another: calls over a socket. Standard
library alone: it runs inside the sandbox.

The tests ask, the program answers. To the side of the tests, all that comes over the socket is data; it can do no more
than be wrong."""

from __future__ import annotations

import builtins
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from aurify.sandbox.values import Remote, pack_peer_value, unpack_peer_value

MAX_MESSAGE = 8 << 20


class ProgramEnded(BaseException):
    """The other side has hung up, or talks nonsense. No `except Exception` of a test may catch it."""


class ProgramExit(SystemExit):
    """The program wanted to exit. A test may expect it, but it does not end the tests."""


class ProgramError(Exception):
    """An error of a class of the program's own. Its attributes are asked for on the other side."""

    remote: Remote | None = None

    def __getattr__(self, name: str) -> Any:
        remote = self.__dict__.get("remote")
        if remote is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(remote, name)


class Peer:
    """One end of the conversation. deciding: the end of the tests. It lets the other end call the functions that it
    has handed over, and nothing else. errors: the program's own error classes by name. take_printed: what this side
    has printed since the last message."""

    def __init__(
        self,
        descriptor: int,
        operations: dict[str, Any],
        deciding: bool = False,
        take_printed: Callable[[], str] = lambda: "",
    ) -> None:
        self.descriptor, self.operations, self.deciding, self.ended = descriptor, operations, deciding, False
        self.take_printed = take_printed
        self.objects: dict[int, Any] = {}
        self.remotes: dict[int, Remote] = {}
        self.errors: dict[str, Any] = {}
        self.num_asked = 0
        self.cannot_send = ""  # what the tests wanted to hand over and could not

    # messages

    def send(self, message: dict[str, Any]) -> None:
        if printed := self.take_printed():
            message["printed"] = printed
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a value of {len(data)} bytes is too large to hand over")
        view = memoryview(struct.pack("<I", len(data)) + data)
        try:
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            self.end(error)

    def receive(self) -> dict[str, Any]:
        (size,) = struct.unpack("<I", self.read(4))
        if size > MAX_MESSAGE:
            self.end(ValueError("message too large"))
        try:
            message = json.loads(self.read(size))
        except (ValueError, RecursionError) as error:
            self.end(error)
        if not isinstance(message, dict):
            self.end(ValueError("no message"))
        if "printed" in message:
            sys.stdout.write(str(message["printed"]))  # a test may have put something in its stead
        return message

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = os.read(self.descriptor, min(size - len(data), 1 << 16))
            except OSError as error:
                self.end(error)
            if not part:
                self.end(None)
            data += part
        return bytes(data)

    def end(self, cause: BaseException | None) -> Any:
        self.ended = True
        raise ProgramEnded("the program ended") from cause

    # requests

    def ask(self, operation: str, *arguments: Any) -> Any:
        self.num_asked += 1
        self.send({"do": operation, "with": [pack_peer_value(self, argument) for argument in arguments]})
        while True:
            message = self.receive()
            if "do" in message:
                self.serve(message)
            elif "error" in message:
                raise self.decode_error(*message["error"])
            else:
                return unpack_peer_value(self, message.get("value"))

    def serve(self, message: dict[str, Any]) -> None:
        try:
            arguments = [unpack_peer_value(self, value) for value in message["with"]]
            answer = {"value": pack_peer_value(self, self.operations[message["do"]](*arguments))}
        except ProgramEnded:
            raise
        except BaseException as error:
            answer = {"error": self.encode_error(error)}
        self.send(answer)

    def call_back(self, function: Any, positional: list[Any], named: dict[str, Any]) -> list[Any]:
        if not any(function is known for known in self.objects.values()):
            raise PermissionError("only functions that the tests hand over may be called")
        return [function(*positional, **named), []]

    # errors

    def encode_error(self, error: BaseException) -> list[Any]:
        """[name of its class, text, arguments, the error itself where its class is the program's own]"""
        name, text = type(error).__name__, str(error)[:1000]
        arguments = [arg if isinstance(arg, str | int | float | None) else str(arg)[:1000] for arg in error.args]
        if self.deciding or type(error).__module__ == "builtins":
            return [name, text, arguments, None]
        return [name, text, arguments, pack_peer_value(self, error)]

    def decode_error(self, name: Any, text: Any, arguments: Any, remote: Any) -> BaseException:
        if name == "SystemExit":
            return ProgramExit(*arguments)
        known = self.errors.get(str(name)) or getattr(builtins, str(name), None)
        if not (isinstance(known, type) and issubclass(known, Exception)):
            return ProgramError(f"{name}: {text}")
        try:
            error = known(*arguments) if known.__module__ == "builtins" else known(text)
        except Exception:  # it takes other arguments
            return ProgramError(f"{name}: {text}")
        if isinstance(error, ProgramError):
            error.remote = unpack_peer_value(self, remote)
        return error

    def add_error_class(self, name: str, remote: Remote, bases: list[str]) -> type:
        """Makes a class that stands for the program's error class of that name."""
        known = [self.errors.get(base) or getattr(builtins, base, Exception) for base in bases]
        parents = [base for base in known if isinstance(base, type) and issubclass(base, Exception)]
        if not any(issubclass(base, ProgramError) for base in parents):
            parents.insert(0, ProgramError)
        self.errors[name] = type(name, tuple(dict.fromkeys(parents)), {"__module__": "solution", "remote": remote})
        return self.errors[name]

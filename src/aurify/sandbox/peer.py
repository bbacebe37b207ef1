"""How the tests, in one sandbox, talk to the program in another: calls over a socket. Standard library alone: it is
handed over as source text.

Values come back as copies where they are plain data, else as a `Remote`, which asks the other side for everything but
its equality: that is identity. To the side of the tests, what comes over the socket is data."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import struct
from typing import Any

MAX_MESSAGE = 8 << 20


class ProgramEnded(BaseException):
    """The other side has hung up, or talks nonsense. No `except Exception` of a test may catch it."""


class CannotSend(TypeError):
    """The tests want to hand something over that is neither plain data nor a function."""


class ProgramError(Exception):
    """An exception of the program's own kind."""


class Peer:
    """One end of the conversation. deciding: the end of the tests, which lets the other one call the functions that it
    was handed, and nothing else."""

    def __init__(self, descriptor: int, operations: dict[str, Any], deciding: bool = False) -> None:
        self.descriptor, self.operations, self.deciding, self.ended = descriptor, operations, deciding, False
        self.objects: dict[int, Any] = {}
        self.remotes: dict[int, Remote] = {}

    # messages

    def send(self, message: dict[str, Any]) -> None:
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
        self.send({"do": operation, "with": [self.encode(argument) for argument in arguments]})
        while True:
            message = self.receive()
            if "do" in message:
                self.serve(message)
            elif "error" in message:
                kind, text = (str(part) for part in message["error"])
                known = getattr(builtins, kind, None)
                if not (isinstance(known, type) and issubclass(known, Exception)):
                    raise ProgramError(f"{kind}: {text}")
                try:
                    error = known(text)
                except TypeError:  # some want more than a text
                    error = ProgramError(f"{kind}: {text}")
                raise error
            else:
                return self.decode(message.get("value"))

    def serve(self, message: dict[str, Any]) -> None:
        try:
            arguments = [self.decode(value) for value in message["with"]]
            answer = {"value": self.encode(self.operations[message["do"]](*arguments))}
        except ProgramEnded:
            raise
        except BaseException as error:
            answer = {"error": [type(error).__name__, str(error)[:1000]]}
        self.send(answer)

    def call_back(self, function: Any, positional: list[Any], named: dict[str, Any]) -> list[Any]:
        if not any(function is known for known in self.objects.values()):
            raise PermissionError("only functions that the tests hand over may be called")
        return [function(*positional, **named), []]

    # values

    def encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        for plain in (int, float, str):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "_number")}
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return {kind.__name__: [self.encode(entry) for entry in value]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(entry)] for key, entry in dict.items(value)]}
        if isinstance(value, bytes | bytearray):
            return {type(value).__name__: value.hex()}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        module = type(value).__module__
        if module in ("decimal", "fractions") and type(value).__name__ in ("Decimal", "Fraction"):
            return {type(value).__name__: str(value)}
        if module == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist())
        if self.deciding and not callable(value):
            raise CannotSend(
                f"the tests hand a {type(value).__name__} to the program; only plain data and functions pass"
            )
        self.objects[id(value)] = value
        return {"object": id(value)}

    def decode(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        [(kind, content)] = value.items()
        if kind in ("list", "tuple", "set", "frozenset"):
            return getattr(builtins, kind)(self.decode(entry) for entry in content)
        if kind == "dict":
            return {self.decode(key): self.decode(entry) for key, entry in content}
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind).fromhex(content)
        if kind == "complex":
            return complex(*content)
        if kind in ("Decimal", "Fraction"):
            return getattr(importlib.import_module("decimal" if kind == "Decimal" else "fractions"), kind)(content)
        if kind == "yours":
            return self.objects[content]
        if kind == "object":
            return self.remotes.setdefault(content, Remote(self, content))
        raise ValueError(f"unknown kind of value {kind!r}")


class Remote:
    """An object that lives on the other side. What is asked of it is asked there; equality is identity."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask(operation, self, *arguments)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        result, changed = self._ask("call", list(positional), named)
        for old, new in zip(positional, changed, strict=False):
            replace_content(old, new)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set_item", key, value)

    def __contains__(self, value: Any) -> bool:
        return bool(self._ask("contains", value))

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return bool(self._ask("bool"))

    def __str__(self) -> str:
        return str(self._ask("str"))


def replace_content(old: Any, new: Any) -> None:
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def call(function: Any, positional: list[Any], named: dict[str, Any]) -> list[Any]:
    """The result, and what has become of the arguments where there is none: they may have been changed in place."""
    result = function(*positional, **named)
    return [result, positional if result is None else []]


OPERATIONS = {
    "call": call,
    "get": getattr,
    "set": setattr,
    "item": lambda value, key: value[key],
    "set_item": lambda value, key, entry: value.__setitem__(key, entry),
    "contains": lambda value, entry: entry in value,
    "iter": lambda value: Iteration(value),
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
}


class Iteration:
    """Keeps plain iterators from being taken for data."""

    def __init__(self, value: Any) -> None:
        self.iterator = iter(value)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.iterator)

"""How values cross the socket between the tests and the program. Standard library alone: it runs inside the sandbox.

Plain data cross as copies. Any other object stays where it is, and the other side gets a `Remote` for it. A `Remote`
asks the other side for everything but equality, which is identity: the program must not decide what its results equal.
"""

from __future__ import annotations

import builtins
import importlib
import types
from typing import Any

CONTAINERS = ("list", "tuple", "set", "frozenset")
WRITTEN = {  # type -> its module, and the function that reads it from text
    "Decimal": ("decimal", ""),
    "Fraction": ("fractions", ""),
    "date": ("datetime", "fromisoformat"),
    "datetime": ("datetime", "fromisoformat"),
    "time": ("datetime", "fromisoformat"),
}
PLAIN = (int, float, str, bool, complex, bytes, list, tuple, dict, set)
ERRORS = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)]
TYPES: dict[str, type] = {kind.__name__: kind for kind in (*PLAIN, *ERRORS)}  # both sides know them by name


class CannotSend(TypeError):
    """The tests hand the program something that is neither plain data nor a function."""


def pack_peer_value(peer: Any, value: Any) -> Any:
    """The value as JSON. Values of subclasses of plain types become plain."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, Remote):
        return {"yours": object.__getattribute__(value, "_number")}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack_peer_value(peer, entry) for entry in value]}
    if isinstance(value, dict):
        return {
            "dict": [[pack_peer_value(peer, key), pack_peer_value(peer, entry)] for key, entry in dict.items(value)]
        }
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    return pack_peer_object(peer, value)


def pack_peer_object(peer: Any, value: Any) -> Any:
    module, name = type(value).__module__, type(value).__name__
    if WRITTEN.get(name, ("",))[0] == module:
        return {name: value.isoformat() if module == "datetime" else str(value)}
    if (module, name) == ("datetime", "timedelta"):
        return {name: [value.days, value.seconds, value.microseconds]}
    if module == "numpy" and hasattr(value, "tolist"):
        return pack_peer_value(peer, value.tolist())
    remote = vars(value).get("remote") if isinstance(value, type) else None  # a class of the program's own errors
    if isinstance(remote, Remote):
        return pack_peer_value(peer, remote)
    if peer.deciding and not callable(value):
        peer.cannot_send = f"the tests hand a {name} to the program; only plain data and functions pass"
        raise CannotSend(peer.cannot_send)
    peer.objects[id(value)] = value
    return {"coroutine" if isinstance(value, types.CoroutineType) else "object": id(value)}


def unpack_peer_value(peer: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind in CONTAINERS:
        return getattr(builtins, kind)(unpack_peer_value(peer, entry) for entry in content)
    if kind == "dict":
        return {unpack_peer_value(peer, key): unpack_peer_value(peer, entry) for key, entry in content}
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(content)
    if kind in ("complex", "range"):
        return getattr(builtins, kind)(*content)
    if kind == "type":
        return TYPES[content]
    if kind in WRITTEN:
        module, reader = WRITTEN[kind]
        found = getattr(importlib.import_module(module), kind)
        return getattr(found, reader)(content) if reader else found(content)
    if kind == "timedelta":
        return importlib.import_module("datetime").timedelta(*content)
    if kind == "yours":
        return peer.objects[content]
    if kind == "object":
        return peer.remotes.setdefault(content, Remote(peer, content))
    if kind == "coroutine":
        return await_peer_value(Remote(peer, content))
    raise ValueError(f"unknown kind of value {kind!r}")


async def await_peer_value(remote: Remote) -> Any:
    """Stands for a coroutine of the other side, which runs there when it is awaited here."""
    return remote._ask("await")


class Remote:
    """An object of the other side."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Any, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask(operation, self, *arguments)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        result, changed = self._ask("call", list(positional), named)
        for old, new in zip(positional, changed, strict=False):
            replace_peer_content(old, new)
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

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(self._ask("isinstance", value))

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

    def __repr__(self) -> str:
        return str(self._ask("repr"))


def replace_peer_content(old: Any, new: Any) -> None:
    """Gives an argument the content that it has on the other side after the call."""
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def call_peer_function(function: Any, positional: list[Any], named: dict[str, Any]) -> list[Any]:
    """The result; and the arguments again where there is no result, since the function may have changed them."""
    result = function(*positional, **named)
    return [result, positional if result is None else []]


def wait_for_peer_coroutine(coroutine: Any) -> Any:
    """Runs a coroutine in the one event loop of this side."""
    if "loop" not in EVENT_LOOP:
        EVENT_LOOP["loop"] = importlib.import_module("asyncio").new_event_loop()
    return EVENT_LOOP["loop"].run_until_complete(coroutine)


class Iteration:
    """A plain iterator, which must not cross as data."""

    def __init__(self, value: Any) -> None:
        self.iterator = iter(value)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.iterator)


EVENT_LOOP: dict[str, Any] = {}
OPERATIONS = {
    "call": call_peer_function,
    "get": getattr,
    "set": setattr,
    "item": lambda value, key: value[key],
    "set_item": lambda value, key, entry: value.__setitem__(key, entry),
    "contains": lambda value, entry: entry in value,
    "isinstance": lambda kind, value: isinstance(value, kind),
    "iter": Iteration,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "await": wait_for_peer_coroutine,
}

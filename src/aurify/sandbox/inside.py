"""Runs inside the sandbox, with nothing but the standard library: a script, or one of the two sides of a test.

Tests and program are in two sandboxes. The tests call the program's functions over a socket (`peer.py`). So the program
never sees what is expected of it, cannot touch the interpreter that decides, and cannot say that it has passed:
printing, exiting early and redefining `assert` or `==` gain it nothing."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import json
import os
import re
import sys
import types
from typing import Any

from aurify.sandbox.confine import confine
from aurify.sandbox.peer import Peer, ProgramEnded
from aurify.sandbox.values import OPERATIONS, Remote

MAX_PRINTED = 1 << 20


def execute_script(options: dict[str, Any]) -> None:
    """A program that reads standard input and prints."""
    run_module(options["code"], "__main__")


def run_module(code: str, name: str) -> dict[str, Any]:
    """Executes the code as a module of that name. It inherits `annotations` from the future of this file: annotations
    are not evaluated, so that `List` need not be imported."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, "program.py", "exec"), module.__dict__)
    return module.__dict__


# the side of the program


class Printed(io.BytesIO):
    """What the program has printed since the tests last heard of it. It keeps a megabyte of it."""

    def write(self, data: Any) -> int:
        return super().write(data) if self.tell() < MAX_PRINTED else len(data)

    def take(self) -> str:
        text = self.getvalue()[:MAX_PRINTED].decode(errors="replace")
        self.seek(0)
        self.truncate()
        return text


class AskedInput(io.TextIOBase):
    """The program's standard input is that of the tests, which may have put a text there."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return str(self.peer.ask("readline"))

    def read(self, size: int | None = -1) -> str:
        return str(self.peer.ask("read"))


def execute_program(options: dict[str, Any]) -> None:
    """Answers the tests until they hang up: first what the program defines, then calls."""
    printed = Printed()
    sys.stdout = io.TextIOWrapper(printed, "utf-8", errors="replace", write_through=True)
    peer = Peer(options["descriptor"], dict(OPERATIONS), take_printed=printed.take)
    sys.stdin = AskedInput(peer)
    builtins.input = lambda prompt="": peer.ask("input", str(prompt))

    def load() -> list[list[Any]]:
        peer.errors = run_module(options["code"], "solution")
        return list_definitions(peer.errors)

    peer.operations["load"] = load
    peer.operations["candidate"] = lambda name, required: find_candidate(peer.errors, name, required)
    with contextlib.suppress(ProgramEnded):
        while True:
            peer.serve(peer.receive())


def list_definitions(names: dict[str, Any]) -> list[list[Any]]:
    """[name, kind, content] of what a program defines. The content of a module is its name; that of an error class is
    the class and the names of its bases."""
    found: list[list[Any]] = []
    for name, value in names.items():
        if name.startswith("__"):
            continue
        if isinstance(value, types.ModuleType):
            found.append([name, "module", value.__name__])
        elif isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "solution":
            found.append([name, "error", [value, [base.__name__ for base in value.__bases__]]])
        else:
            found.append([name, "value", value])
    return found


def find_candidate(names: dict[str, Any], name: str | None, required: bool) -> Any:
    """The function of that name, or the method of the class `Solution`. Without such a name: the last function that the
    program defines, or the last method of that class."""
    solution: Any = names.get("Solution")
    if name is not None and name in names:
        return names[name]
    if name is not None and hasattr(solution, name):
        return getattr(solution(), name)
    if required:
        raise NameError(f"the program defines no {name!r}")
    own = [value for key, value in names.items() if is_public_function(key, value) and value.__module__ == "solution"]
    if own:
        return own[-1]
    methods = [key for key, value in vars(solution).items() if is_public_function(key, value)] if solution else []
    if not methods:
        raise NameError("the program defines no function")
    return getattr(solution(), methods[-1])


def is_public_function(name: str, value: Any) -> bool:
    return isinstance(value, types.FunctionType) and not name.startswith("_")


# the side of the tests


def execute_tests(options: dict[str, Any]) -> None:
    """Runs the tests and reports each of them on standard output, one JSON line each. Nothing else writes there."""
    from aurify.sandbox.items import Broken
    from aurify.sandbox.runner import Runner, describe
    from aurify.sandbox.texts import imported_from_program, parse_all

    report = os.fdopen(os.dup(1), "w")
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def say(**line: Any) -> None:
        report.write(json.dumps(line) + "\n")
        report.flush()

    say(ready=True)
    peer = Peer(options["descriptor"], {}, deciding=True)
    peer.operations = {
        "call": peer.call_back,
        "input": lambda prompt: input(prompt),
        "read": lambda: sys.stdin.read(),
        "readline": lambda: sys.stdin.readline(),
    }
    entry_point, hint = options["entry_point"], options["hint"]
    all_text = "\n".join([options["setup"], *options["tests"]])
    try:
        texts = parse_all(options["tests"], options["setup"])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        say(broken=describe(error))
        return
    say(count=sum(text.count() for text in texts) + len(options["calls"]))
    try:
        solution = load_solution(peer, {str(entry_point), str(hint)} | imported_from_program(all_text))
    except BaseException as error:
        say(refused=describe(error))
        return
    namespace = make_module(solution, {entry_point, hint} - {None}, all_text)

    def make_candidate() -> Any:
        if entry_point and not entry_point.isidentifier():
            return eval(entry_point, namespace)
        return peer.ask("candidate", entry_point or hint, bool(entry_point))

    runner = Runner(peer, namespace, say, make_candidate)
    can_check = bool(options["calls"]) or any(text.count() for text in texts)
    try:
        if not runner.set_up(options["setup"]):
            return
        for text in texts:
            runner.run_text(text)
        runner.run_calls(options["calls"])
        runner.conclude(can_check, vars(solution), set(re.findall(r"\w+", all_text)))
    except Broken as error:
        say(broken=str(error)[:500])
        return
    say(done=True)


def load_solution(peer: Peer, named: set[str]) -> types.ModuleType:
    """A module of what the program defines. The tests can import it. It hides no builtin but those that are named: a
    task may ask for a function `sum`."""
    module = types.ModuleType("solution")
    for name, kind, content in peer.ask("load"):
        name = str(name)
        if hasattr(builtins, name) and name not in named:
            continue
        if kind == "module":
            with contextlib.suppress(ImportError):
                setattr(module, name, importlib.import_module(str(content)))
        elif kind == "error" and isinstance(content[0], Remote):
            setattr(module, name, peer.add_error_class(name, content[0], [str(base) for base in content[1]]))
        else:
            setattr(module, name, content)
    peer.num_asked = 0
    return module


def make_module(solution: types.ModuleType, named: set[str], all_text: str) -> dict[str, Any]:
    """The namespace of the tests. It starts with what the program defines. named: its function, after which people call
    the module as well."""
    from aurify.sandbox.texts import PROGRAM_MODULES

    module = types.ModuleType("__main__")
    module.__dict__.update({name: value for name, value in vars(solution).items() if not name.startswith("__")})
    module.__file__ = "tests.py"
    sys.modules["__main__"] = module
    for name in (*PROGRAM_MODULES, *named):
        if name not in sys.stdlib_module_names:
            sys.modules[name] = solution
    sys.modules["pytest"] = sys.modules["pytest_asyncio"] = sys.modules["aurify.sandbox.pytest_stand_in"]
    if "unittest" in all_text:
        vars(importlib.import_module("unittest"))["main"] = do_nothing  # the runner runs all cases anyway
    if "doctest" in all_text:
        vars(importlib.import_module("doctest"))["testmod"] = do_nothing
    return module.__dict__


def do_nothing(*arguments: Any, **options: Any) -> None:
    pass


# a session


def execute_cells(options: dict[str, Any]) -> None:
    """An interpreter that runs what it is sent, piece by piece."""
    from aurify.sandbox.cells import run_cells

    run_cells(options["descriptor"], options["ipython"])


def main(options: dict[str, Any]) -> None:
    sys.path += options["packages"]  # the interpreter starts without `site`, which takes long and runs .pth files
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    sys.set_int_max_str_digits(0)
    confine(options)
    roles = {"script": execute_script, "program": execute_program, "tests": execute_tests, "cells": execute_cells}
    roles[options["role"]](options)

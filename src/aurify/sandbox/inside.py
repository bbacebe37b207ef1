"""Runs inside the sandbox, as source text, with nothing but the standard library: a script, or one of the two sides of
a test.

Tests and program live in two sandboxes. The tests call the program's functions over a socket (`peer.py`). So the
program never sees what is expected of it, cannot touch the interpreter that decides, and cannot say that it has
passed; printing, exiting early or redefining `assert` and `==` gain it nothing."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import os
import sys
import types
from typing import Any

from aurify.sandbox.confine import confine
from aurify.sandbox.peer import OPERATIONS, CannotSend, Peer, ProgramEnded


def script(options: dict[str, Any]) -> None:
    """A program that reads standard input and prints."""
    run(options["code"], "__main__")


def run(code: str, name: str) -> dict[str, Any]:
    """Executes the program as a module of that name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, "program.py", "exec"), module.__dict__)
    return module.__dict__


def program(options: dict[str, Any]) -> None:
    """Answers the tests until they hang up: first what the program defines, then calls."""
    peer = Peer(options["descriptor"], {**OPERATIONS, "load": lambda: exports(run(options["code"], "solution"))})
    with contextlib.suppress(ProgramEnded):
        while True:
            peer.serve(peer.receive())


def exports(names: dict[str, Any]) -> list[list[Any]]:
    """[name, whether it is a module, the value or the module's name]; nothing that would hide a builtin."""
    found = []
    for name, value in names.items():
        if not name.startswith("__") and not hasattr(builtins, name):
            module = isinstance(value, types.ModuleType)
            found.append([name, module, value.__name__ if module else value])
    return found


def tests(options: dict[str, Any]) -> None:
    """Runs the tests and reports each of them on standard output, one JSON line each. Nothing but this writes there."""
    report = os.fdopen(os.dup(1), "w")
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def say(**line: Any) -> None:
        report.write(json.dumps(line) + "\n")
        report.flush()

    say(ready=True)
    peer = Peer(options["descriptor"], {}, deciding=True)
    peer.operations["call"] = peer.call_back
    module = types.ModuleType("solution")
    try:
        for name, is_module, value in peer.ask("load"):
            with contextlib.suppress(ImportError):
                if not hasattr(builtins, str(name)):
                    setattr(module, str(name), importlib.import_module(str(value)) if is_module else value)
    except BaseException as error:
        say(refused=f"{type(error).__name__}: {error}"[:500])
        return
    sys.modules["solution"] = module
    namespace = {**module.__dict__, "__name__": "tests"}
    try:
        exec(compile(options["setup"], "setup", "exec"), namespace)
        pieces = [piece for text in options["tests"] for piece in checks(text, options["entry_point"])]
    except BaseException as error:
        say(broken=f"{type(error).__name__}: {error}"[:500])
        return
    say(count=len(pieces))
    for number, piece in enumerate(pieces):
        try:
            if peer.ended:
                raise ProgramEnded("the program ended")
            exec(piece, namespace)
            passed, problem = not peer.ended, ""
        except CannotSend as error:
            say(broken=str(error))
            return
        except BaseException as error:
            passed, problem = False, f"{type(error).__name__}: {error}"[:500]
        say(test=number, passed=passed, problem=problem)
    say(done=True)


def checks(text: str, entry_point: str | None) -> list[Any]:
    """The tests that a text holds: each `assert` at its top level, each `test_*` function, each method of a TestCase,
    or HumanEval's `check(candidate)`. Everything else in it runs with the test that follows it."""
    pieces: list[Any] = []
    pending: list[ast.stmt] = []

    def close(*extra: ast.stmt) -> None:
        nonlocal pending
        pieces.append(compile(ast.Module([*pending, *extra], []), "tests", "exec"))
        pending = []

    calls: list[ast.stmt] = []
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.Assert):
            close(node)
            continue
        pending.append(node)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not node.args.args:
            calls += ast.parse(f"{node.name}()").body
        elif isinstance(node, ast.FunctionDef) and node.name == "check" and entry_point:
            calls += ast.parse(f"check({entry_point})").body
        elif isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name.startswith("test"):
                    calls += ast.parse(f"{node.name}({method.name!r}).debug()").body
    for call in calls:
        close(call)
    if pending:
        close()
    return pieces


def main(options: dict[str, Any]) -> None:
    sys.path += options["packages"]  # the interpreter was started without `site`, which takes long and runs .pth files
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    sys.set_int_max_str_digits(0)
    confine(options)
    {"script": script, "program": program, "tests": tests}[options["role"]](options)

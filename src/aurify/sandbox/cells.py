"""Runs inside the sandbox: an interpreter that runs one piece of code after the other, and keeps its state. Standard
library alone, and IPython where it is asked for.

What the code prints goes to the pipe, together with errors and the value of the last expression. The socket carries
nothing but code one way and, the other way, the token that came with it, once the code has run."""

from __future__ import annotations

import ast
import importlib
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

READY = b"ready"
TOKEN_BYTES = 16
MAX_CODE = 100_000  # bytes, so that a message is one packet
FILE = "<call {}>"  # what a piece of code is called in tracebacks


def run_cells(descriptor: int, ipython: bool) -> None:
    os.dup2(1, 2)  # one pipe, so that both streams stay in their order
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    translate = start_ipython(module) if ipython else str
    os.write(descriptor, READY)
    number = 0
    while message := os.read(descriptor, TOKEN_BYTES + MAX_CODE):
        number += 1
        run_cell(message[TOKEN_BYTES:].decode(), FILE.format(number), module.__dict__, translate)
        os.write(descriptor, message[:TOKEN_BYTES])


def start_ipython(module: types.ModuleType) -> Callable[[str], str]:
    """What turns `%magic`, `!command` and `name?` into calls of IPython's shell, which shares the module's names."""
    os.environ["IPYTHONDIR"] = "/"
    shell = importlib.import_module("IPython.core.interactiveshell").InteractiveShell
    shell.init_profile_dir = lambda self, folder: None  # there may be none that can be written to
    history = {"enabled": False, "hist_file": ":memory:"}
    settings = {"HistoryManager": history, "InteractiveShell": {"colors": "nocolor"}}
    config = importlib.import_module("traitlets.config").Config(settings)
    translate: Callable[[str], str]
    translate = shell.instance(config=config, user_module=module, user_ns=module.__dict__).transform_cell
    return translate


def run_cell(code: str, file: str, namespace: dict[str, Any], translate: Callable[[str], str] = str) -> None:
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="replace", buffering=1 << 16, closefd=False)  # noqa: SIM115
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)  # for tracebacks
    try:
        for part in compile_parts(translate(code), file):
            exec(part, namespace)
    except BaseException as error:
        print_error(error)
    stream: Any = sys.stdout
    if not stream.closed:
        stream.flush()


def compile_parts(code: str, file: str) -> Iterator[types.CodeType]:
    """The statements, and apart from them an expression at the end, whose value is printed unless it is None."""
    body = ast.parse(code, file).body
    last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
    compiled = [compile(ast.Module(body, []), file, "exec", dont_inherit=True)]  # all, before anything runs
    if last:
        compiled.append(compile(ast.Interactive(last), file, "single", dont_inherit=True))
    yield from compiled


def print_error(error: BaseException) -> None:
    """As Python does, but only with the lines of the code that was sent."""
    told = traceback.TracebackException.from_exception(error)
    errors: list[Any] = [told]
    for one in errors:
        errors += [other for other in (one.__cause__, one.__context__) if other is not None]
        one.stack = traceback.StackSummary.from_list([line for line in one.stack if line.filename.startswith("<call ")])
    print("".join(told.format()), end="")

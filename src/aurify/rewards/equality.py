"""Whether two mathematical expressions are equal, asked of math-verify (extra `math`) in processes of their own.

SymPy can take for ever, or all memory, over a line that a model wrote. math-verify's own time limits rest on signals,
which only a main thread gets; so each question goes to a worker process that is ended when it takes too long."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import resource
import selectors
import subprocess
import sys
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

MAX_LENGTH = 2000  # characters; nobody's final answer is longer
MEMORY = 4 << 30  # of address space; SymPy and NumPy reserve most of one
START_SECONDS = 120.0  # importing SymPy on a busy machine


class EqualityError(ValueError):
    """The expected answer cannot be read."""


class Comparer:
    """One process. It ends when its standard input is closed, so also when we are killed."""

    def __init__(self) -> None:
        code = "from aurify.rewards import equality; equality.serve_answer_comparisons()"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.close = weakref.finalize(self, end_answer_comparer, self.process)
        if self.read_line(START_SECONDS) != "ready":
            self.close()
            raise RuntimeError("the process that compares expressions did not start")

    def ask(self, golds: list[str], answer: str, seconds: float) -> bool | None:
        """None: it took too long, or too much, and the worker has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([golds, answer]) + "\n")
            self.process.stdin.flush()
            line = self.read_line(seconds)
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            return None
        reply = json.loads(line)
        if "problem" in reply:
            raise EqualityError(reply["problem"])
        return bool(reply["equal"])

    def read_line(self, seconds: float) -> str:
        """The next line that the process writes; empty if there is none in time."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline().strip() if selector.select(seconds) else ""


def end_answer_comparer(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


class Comparers:
    """A few of them, started when they are first needed."""

    def __init__(self, num: int) -> None:
        self.free: queue.LifoQueue[Comparer | None] = queue.LifoQueue()
        for _ in range(num):
            self.free.put(None)

    def equal(self, golds: list[str], answer: str, seconds: float) -> bool:
        """Whether the answer equals one of the golds. What cannot be decided in time is not equal."""
        if len(answer) > MAX_LENGTH:
            return False
        worker = self.free.get()
        try:
            worker = worker or Comparer()
            equal = worker.ask(golds, answer, seconds)
            worker = None if equal is None else worker
            return bool(equal)
        finally:
            self.free.put(worker)


_comparers: Comparers | None = None
_lock = threading.Lock()


def open_answer_comparers() -> Comparers:
    global _comparers
    with _lock:
        if _comparers is None:
            _comparers = Comparers(min(4, os.cpu_count() or 1))
        return _comparers


def serve_answer_comparisons() -> None:
    """The worker: one JSON line in, [golds, answer]; one out."""
    from math_verify import LatexExtractionConfig, parse

    # LaTeX alone: where it cannot be read, math-verify would take any number out of it
    read_latex = partial(parse, extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback")

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of missing time limits; ours are outside
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    report.write("ready\n")
    report.flush()
    known: dict[str, list[Any]] = {}
    for line in sys.stdin:
        golds, answer = json.loads(line)
        for gold in golds:
            if gold not in known:
                known[gold] = read_latex(f"${gold}$", parsing_timeout=None)
        unreadable = [gold for gold in golds if not known[gold]]
        if unreadable:
            reply: dict[str, object] = {"problem": f"the expected answer {unreadable[0]!r} is no expression"}
        else:
            read = read_latex(f"${answer}$", parsing_timeout=None)
            reply = {"equal": any(equal_answer_expressions(known[gold], read) for gold in golds)}
        report.write(json.dumps(reply) + "\n")
        report.flush()


def equal_answer_expressions(gold: list[Any], answer: list[Any]) -> bool:
    """By math-verify; beyond it, inequalities equal the sets that they describe, and "4 = 3" equals nothing."""
    from math_verify import verify

    if not answer or is_false_answer(answer[0]) or are_answers_far_apart(gold[0], answer[0]):
        return False
    if verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True):
        return True
    regions = read_answer_region(gold[0]), read_answer_region(answer[0])
    return None not in regions and regions[0] == regions[1]


def are_answers_far_apart(gold: Any, answer: Any) -> bool:
    """Numbers, or lists of them, that differ by more than a hundred-thousandth. math-verify rounds to six decimals, so
    10^{-8} and 10^{-9} are the same to it."""
    from sympy import N, Tuple

    if isinstance(gold, Tuple) and isinstance(answer, Tuple) and len(gold) == len(answer):
        return any(map(are_answers_far_apart, gold, answer))
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    one, other = N(gold, 30), N(answer, 30)
    if not (one.is_finite and other.is_finite):
        return False
    return bool(abs(one - other) > 1e-5 * max(abs(one), abs(other)))


def is_false_answer(expression: Any) -> bool:
    """A statement about numbers alone that does not hold."""
    from sympy import And, Rel, false

    return isinstance(expression, (Rel, And)) and not expression.free_symbols and expression.doit() == false


def read_answer_region(expression: Any) -> Any:
    """The numbers that a set, an inequality, or alternatives in a list describe; None where there are none."""
    from sympy import And, Or, Rel, Set

    parts = list(expression.args) if type(expression).__name__ == "FiniteSet" else [expression]
    if parts and all(isinstance(part, (Rel, And, Or)) and len(part.free_symbols) == 1 for part in parts):
        with contextlib.suppress(TypeError, NotImplementedError):
            return Or(*parts).as_set() if len(expression.free_symbols) == 1 else None
        return None
    return expression if isinstance(expression, Set) else None

"""Rewards for programs: run against their tests in the sandbox, and small ones for what can be read off the text.

The tests of a task stand in its columns: `tests` (or `test_list`, `test`: Python text, or a list of texts), with
`setup` (or `test_setup_code`) and `entry_point` if need be; or `inputs` and `outputs` for programs that read standard
input and print. The tests run in a sandbox of their own, so a program can pass them only by giving the right values."""

from __future__ import annotations

import ast
import asyncio
import functools
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from aurify.errors import UserError
from aurify.sandbox.sandbox import Limits, backend, run_script, run_tests
from aurify.types import Task, Trajectory

BLOCK = re.compile(r"^```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
Score = Literal["all", "fraction"]


def program_in(text: str) -> str:
    """The last fenced block of Python; the whole text where nothing is fenced."""
    blocks = BLOCK.findall(text)
    return blocks[-1] if blocks else text


def code(
    score: Score = "all",
    seconds: float = Limits.seconds,
    memory_mb: int = Limits.memory_mb,
    disk_mb: int = Limits.disk_mb,
    output_kb: int = Limits.output_kb,
) -> Callable[[Task, Trajectory], Awaitable[float | None]]:
    """1 if the program passes all tests of the task, else 0; with score "fraction", the share that it passes. None for
    tasks without tests. seconds: of processor time, for all tests together (for each input, where there are inputs);
    on the clock, twice as much."""
    if score not in ("all", "fraction"):
        raise UserError(f"reward 'code': score is {score!r}; expected 'all' or 'fraction'")
    limits = Limits(seconds, memory_mb, disk_mb, output_kb)
    backend()  # a machine that cannot run code should say so before anything is trained

    async def passes(task: Task, trajectory: Trajectory) -> float | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(runners(), judged, task, trajectory.text, limits, score)

    return passes


@functools.cache
def runners() -> ThreadPoolExecutor:
    """They wait for sandboxes; as many at a time as there are processors."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="sandbox")


def judged(task: Task, text: str, limits: Limits, score: Score = "all") -> float | None:
    info = task.info
    inputs, outputs = info.get("inputs"), info.get("outputs")
    if inputs is not None and outputs is not None:
        if len(inputs) != len(outputs) or not inputs:
            raise ValueError(f"task {task.id!r} has {len(inputs)} inputs and {len(outputs)} outputs")
        passed, total = prints(program_in(text), inputs, outputs, limits, stop=score == "all"), len(inputs)
    else:
        tests = first_of(info, "tests", "test_list", "test")
        if not tests:
            return None
        report = run_tests(
            program_in(text),
            [tests] if isinstance(tests, str) else tests,
            setup=first_of(info, "setup", "test_setup_code") or "",
            entry_point=info.get("entry_point"),
            limits=limits,
        )
        passed, total = report.passed, report.total
    if score == "fraction":
        return passed / total if total else 0.0
    return float(total > 0 and passed == total)


def first_of(info: Any, *names: str) -> Any:
    return next((info[name] for name in names if info.get(name)), None)


def prints(program: str, inputs: list[str], outputs: list[str], limits: Limits, *, stop: bool) -> int:
    """For how many inputs it prints the output, apart from white space. Compared out here, where it cannot reach.
    stop: after the first that is wrong."""
    passed = 0
    for given, expected in zip(inputs, outputs, strict=True):
        outcome = run_script(program, given, limits)
        right = not outcome.stopped and outcome.returncode == 0 and outcome.stdout.split() == expected.split()
        passed += right
        if stop and not right:
            break
    return passed


def parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(program_in(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return None


def code_syntax(task: Task, trajectory: Trajectory) -> float:
    """1 if the reply holds a Python program that parses."""
    tree = parsed(trajectory.text)
    return float(tree is not None and bool(tree.body))


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions, methods and classes without a leading underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def code_docstrings(task: Task, trajectory: Trajectory) -> float:
    """The share of public functions and classes with a docstring; 0 where there are none."""
    found = [bool(ast.get_docstring(node)) for node in definitions(parsed(trajectory.text) or ast.Module([], []))]
    return sum(found) / len(found) if found else 0.0


def code_type_hints(task: Task, trajectory: Trajectory) -> float:
    """The share of parameters and results of public functions that are annotated; 0 where there are none."""
    found: list[bool] = []
    for node in definitions(parsed(trajectory.text) or ast.Module([], [])):
        if isinstance(node, ast.ClassDef):
            continue
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        found += [argument.annotation is not None for argument in every if argument.arg not in ("self", "cls")]
        found.append(node.returns is not None)
    return sum(found) / len(found) if found else 0.0

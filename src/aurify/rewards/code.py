"""Rewards for programs: whether they pass their tests in the sandbox, and small ones for what the text alone shows.

The tests are in the columns of a task (see `code_tests.py`). They run in a sandbox of their own, so a program can pass
them only by giving the right values."""

from __future__ import annotations

import ast
import asyncio
import functools
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from aurify.errors import UserError
from aurify.rewards.answers import take_answer
from aurify.rewards.code_blocks import UNPARSED, program_in
from aurify.rewards.code_check import check_code_tests, find_tested_names
from aurify.rewards.code_tests import CodeTests, read_code_tests
from aurify.sandbox.sandbox import Limits, find_sandbox_backend, run_script, run_tests
from aurify.types import Task, Trajectory

Score = Literal["all", "fraction"]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")


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
    find_sandbox_backend()  # a machine that cannot run code should say so before anything is trained

    async def passes(task: Task, trajectory: Trajectory) -> float | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(open_judge_threads(), judge_answer_program, task, trajectory, limits, score)

    passes.check_task = functools.partial(check_code_tests, limits=limits)  # type: ignore[attr-defined]
    return passes


@functools.cache
def open_judge_threads() -> ThreadPoolExecutor:
    """Threads that wait for sandboxes: as many at a time as there are processors."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="sandbox")


def judge_answer_program(task: Task, trajectory: Trajectory, limits: Limits, score: Score = "all") -> float | None:
    tests = read_code_tests(task)
    if tests is None:
        return None
    answer = take_answer(trajectory)
    if answer is None:  # a thought that never ends
        return 0.0
    program = program_in(answer, find_tested_names(tests), reads_input=bool(tests.scripts))
    if tests.scripts:
        passed, total = count_right_outputs(program, tests, limits, stop=score == "all"), len(tests.scripts)
    else:
        calls = [(call.arguments, call.named, call.accepted) for call in tests.calls]
        report = run_tests(
            program, tests.texts, calls=calls, setup=tests.setup, entry_point=tests.entry_point, hint=tests.hint,
            limits=limits,
        )  # fmt: skip
        passed, total = report.passed, report.total
    if score == "fraction":
        return passed / total if total else 0.0
    return float(total > 0 and passed == total)


def count_right_outputs(program: str, tests: CodeTests, limits: Limits, *, stop: bool) -> int:
    """For how many inputs the program prints what it should. Compared out here, where the program cannot reach. stop:
    after the first wrong one."""
    passed = 0
    for given, expected in tests.scripts:
        outcome = run_script(program, given, limits)
        right = not outcome.stopped and outcome.returncode == 0 and equals_expected_output(outcome.stdout, expected)
        passed += right
        if stop and not right:
            break
    return passed


def equals_expected_output(printed: str, expected: str) -> bool:
    """Equal word by word. A number that is expected with a decimal point may differ by a millionth."""
    words, wanted = printed.split(), expected.split()
    return len(words) == len(wanted) and all(map(equals_expected_word, words, wanted))


def equals_expected_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if not FLOAT.fullmatch(wanted) or not NUMBER.fullmatch(word):
        return False
    return math.isclose(float(word), float(wanted), rel_tol=1e-6, abs_tol=1e-9)


def parse_answer_program(trajectory: Trajectory) -> ast.Module:
    """The program in the answer. Empty if it does not parse."""
    try:
        return ast.parse(program_in(take_answer(trajectory) or ""))
    except UNPARSED:
        return ast.Module([], [])


def code_syntax(task: Task, trajectory: Trajectory) -> float:
    """1 if the reply holds a Python program that parses."""
    return float(bool(parse_answer_program(trajectory).body))


def find_answer_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions, methods and classes without a leading underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def code_docstrings(task: Task, trajectory: Trajectory) -> float:
    """The share of public functions and classes with a docstring; 0 where there are none."""
    found = [bool(ast.get_docstring(node)) for node in find_answer_definitions(parse_answer_program(trajectory))]
    return sum(found) / len(found) if found else 0.0


def code_type_hints(task: Task, trajectory: Trajectory) -> float:
    """The share of parameters and results of public functions that are annotated; 0 where there are none."""
    found: list[bool] = []
    for node in find_answer_definitions(parse_answer_program(trajectory)):
        if isinstance(node, ast.ClassDef):
            continue
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        found += [argument.annotation is not None for argument in every if argument.arg not in ("self", "cls")]
        found.append(node.returns is not None)
    return sum(found) / len(found) if found else 0.0

"""Finds tests that could never judge a program, before a run starts: they do not parse, check nothing, or need what the
sandbox does not have. Nothing is executed here."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator

from aurify.rewards.code_blocks import UNPARSED, find_code_names
from aurify.rewards.code_tests import CodeTests, find_code_test_columns, list_empty_test_columns, read_code_tests
from aurify.sandbox.checks import FUNCTIONS, read_called_name
from aurify.sandbox.sandbox import Limits
from aurify.sandbox.texts import PROGRAM_MODULES, ParsedText, list_test_imports, list_tested_imports, parse_test_texts
from aurify.sandbox.view import find_sandbox_interpreter, sandbox_has_module
from aurify.types import Task

BUILTIN_FIXTURES = {"request", "monkeypatch", "capsys", "capfd", "candidate", "subtests"}


def check_code_tests(task: Task, limits: Limits) -> None:
    """ValueError: what is wrong with the tests of the task, and the mend."""
    tests = read_code_tests(task)
    if tests is None:
        if empty := list_empty_test_columns(task.info):
            raise ValueError(
                f"the column {empty[0]!r} is empty, so there is nothing to judge a program by; give it tests, drop the "
                "row, or set the column to null if the task is not for code"
            )
        return
    column = next(find_code_test_columns(task.info))[0]
    if problem := next(find_code_test_problems(tests, limits), None):
        raise ValueError(f"the column {column!r} {problem}")


def find_code_test_problems(tests: CodeTests, limits: Limits) -> Iterator[str]:
    if tests.scripts and not any(expected.split() for _, expected in tests.scripts):
        yield "expects no output for any input, so that a program that does nothing would pass; mend the outputs"
    if tests.calls and all(call.accepted == [None] for call in tests.calls):
        yield "expects None from every call, so that a function that does nothing would pass; mend the outputs"
    for _, expected in tests.scripts:
        if (size := len(expected.encode())) > limits.output_kb * 1024:
            yield f"expects {size:,} bytes of output; raise output_kb of the reward, which is {limits.output_kb}"
    if tests.texts:
        yield from find_test_text_problems(tests)


def find_test_text_problems(tests: CodeTests) -> Iterator[str]:
    try:
        texts, setup = parse_test_texts(tests.texts, tests.setup), ast.parse(tests.setup)
    except SyntaxError as error:
        yield f"does not parse: {error.msg} in {str(error.text or '').strip()[:80]!r}, line {error.lineno}"
        return
    except (ValueError, RecursionError, MemoryError) as error:
        yield f"does not parse: {error}"
        return
    all_text = "\n".join([tests.setup, *tests.texts])
    own = {*PROGRAM_MODULES, "pytest", "pytest_asyncio", tests.entry_point, tests.hint}
    trees = [setup, *(text.tree for text in texts)]
    imported = set().union(*map(list_test_imports, trees))
    for module in sorted(imported):
        if module not in own and not sandbox_has_module(module):
            yield (
                f"imports {module!r}, which the sandbox does not have; it has the standard library, the program as "
                f"'solution', and what is installed for {find_sandbox_interpreter()}"
            )
    if not sum(text.count() for text in texts):
        yield (
            "holds no test that would run and check something: an assert at the top, a function test*, such a method "
            "of a class Test* or TestCase, check(candidate), or a doctest with its output; mend the tests or drop the "
            "row"
        )
    elif not (find_tested_names(tests) or imported & set(PROGRAM_MODULES) or re.search(">>>|candidate", all_text)):
        yield "never uses the program: its tests define every name themselves; mend them or drop the row"
    for name in find_unknown_fixtures(trees, texts):
        yield f"asks for the fixture {name!r}, which neither the tests nor the sandbox have"


def find_tested_names(tests: CodeTests) -> set[str]:
    """Names that the program has to define for its tests."""
    name = tests.entry_point or tests.hint
    needed = {"Solution", *re.findall(r"\w+", name)} if name else set()
    with contextlib.suppress(*UNPARSED):
        defined: set[str] = set()
        for text in (tests.setup, *tests.texts):
            own, missing = find_code_names(text)
            needed |= (missing | list_tested_imports(text)) - defined
            defined |= own
    return needed


def find_unknown_fixtures(trees: list[ast.Module], texts: list[ParsedText]) -> Iterator[str]:
    """Arguments of test functions that nothing would fill. Tests with decorators of other kinds are left alone."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    fixtures = [node for node in functions if any("fixture" in ast.unparse(each) for each in node.decorator_list)]
    calls = [
        node for node in nodes if isinstance(node, ast.Call) and read_called_name(node) in ("parametrize", "fixture")
    ]
    known = (
        BUILTIN_FIXTURES
        | {node.name for node in fixtures}
        | {text for call in calls for text in names_in_test_call(call)}
    )
    for text in texts:
        for name, function in text.functions.items():
            arguments = [*function.args.posonlyargs, *function.args.args]
            required = arguments[: len(arguments) - len(function.args.defaults)][1 if "." in name else 0 :]
            plain = all(ast.unparse(each).startswith(("pytest.mark.", "mark.")) for each in function.decorator_list)
            yield from (each.arg for each in required if plain and each.arg not in known)


def names_in_test_call(call: ast.Call) -> set[str]:
    """Every word of a text in the arguments of a call: names that it gives, among others."""
    texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {word for text in texts for word in re.findall(r"\w+", text)}

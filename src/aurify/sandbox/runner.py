"""Runs tests as pytest and unittest would, and reports each of them. Standard library alone: it runs inside the
sandbox, on the side of the tests.

A test has passed if nothing went wrong, the program was there to the end, and at least one check ran. A test that
checks nothing may fail, but it cannot pass: it proves nothing."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aurify.sandbox.checks import HELD, MARK, OPEN, mark_test_checks
from aurify.sandbox.items import Broken, Session, build_test_items
from aurify.sandbox.peer import Peer, ProgramEnded, ProgramExit
from aurify.sandbox.pytest_stand_in import Skipped, XFailed
from aurify.sandbox.texts import ParsedText


def skips_test(error: BaseException) -> bool:
    unittest = type(error).__module__ == "unittest.case" and type(error).__name__ == "SkipTest"
    return unittest or isinstance(error, Skipped | XFailed)


def describe_test_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


class Runner:
    """namespace: of the module of the tests. say: reports a line. make_candidate: finds the function to be tested."""

    def __init__(
        self, peer: Peer, namespace: dict[str, Any], say: Callable[..., None], make_candidate: Callable[[], Any]
    ) -> None:
        self.peer, self.namespace, self.say, self.make_candidate = peer, namespace, say, make_candidate
        self.num_checked = self.num_reported = self.num_failed = 0
        self.num_open = 0  # asserts that have begun and not held, where their failure would be swallowed
        namespace.update({MARK: self.count_check, OPEN: self.open_check, HELD: self.close_check})

    def count_check(self) -> None:
        self.num_checked += 1

    def open_check(self) -> None:
        self.num_open += 1

    def close_check(self) -> None:
        self.num_open -= 1

    def set_up(self, code: str) -> bool:
        """Runs what the tests need. False: it needs something that the program does not have."""
        try:
            tree = ast.parse(code)
            mark_test_checks(tree.body)
            self.execute(tree.body)
        except BaseException as error:
            self.refuse_broken(error)
            if not (self.peer.num_asked or isinstance(error, NameError | ImportError)):
                raise Broken(describe_test_error(error)) from None
            self.say(refused=describe_test_error(error))
            return False
        return True

    def conclude(self, can_check: bool, solution: dict[str, Any], words: set[str]) -> None:
        """Where no test has run, the tests are at fault if nothing in them could check anything, or if they have asked
        the program nothing. Otherwise the program has failed. solution: what it defines. words: of the tests."""
        if not self.num_reported and not (can_check and self.peer.num_asked):
            raise Broken("none of them ran and checked anything")
        used = any(self.namespace.get(name) is solution[name] for name in words & solution.keys())
        if self.num_reported and not (self.num_failed or self.peer.num_asked or used):
            raise Broken("they never use the program")
        if not self.num_reported:
            self.say(test="all", passed=False, problem="no check ran")

    # one test

    def attempt(self, name: str, run: Callable[[], Any], *, can_check: bool = True) -> bool:
        """Runs a test and reports it. False: it does not want to run."""
        if self.peer.ended and not can_check:
            return True  # it would be no test, and its failure is that of the tests before it
        checked, asked, problem = self.num_checked, self.peer.num_asked, ""
        self.num_open = 0
        try:
            if self.peer.ended:
                raise ProgramEnded("the program ended")
            run()
        except BaseException as error:
            self.refuse_broken(error)
            if skips_test(error):
                return False
            problem = describe_test_error(error)
        self.judge(name, problem, can_check, self.num_checked > checked, self.peer.num_asked > asked)
        return True

    def refuse_broken(self, error: BaseException) -> None:
        """Goes on with an error that says nothing about the program."""
        if isinstance(error, Broken):
            raise error
        if isinstance(error, ModuleNotFoundError) and error.name:  # from an import here; the program's have no name
            raise Broken(f"{error}; the sandbox has the standard library, and what its interpreter has installed")

    def judge(self, name: str, problem: str, can_check: bool, checked: bool, asked: bool) -> None:
        if self.peer.cannot_send:
            raise Broken(self.peer.cannot_send)
        if self.peer.ended:
            problem = problem or "the program ended"
        if self.num_open:
            problem, self.num_open = problem or "an assert failed, and the test went on", 0
        if not problem and not checked:
            if not (can_check and asked):
                return
            problem = "none of its checks ran"
        self.num_reported += 1
        self.num_failed += bool(problem)
        self.say(test=name, passed=not problem, problem=problem)

    # the forms of tests

    def run_text(self, text: ParsedText) -> None:
        before = dict(self.namespace)
        mark_test_checks(text.tree.body)
        if not self.run_statements(text):
            return
        if text.has_candidate:
            self.attempt("check", lambda: self.namespace["check"](self.make_candidate()))
        for docstring in text.doctests:
            self.attempt("doctest", partial(self.run_doctest, docstring))
        new = {name: value for name, value in self.namespace.items() if before.get(name, self) is not value}
        checking = {name.rpartition(".")[2] for name in text.functions}
        session = Session(self.namespace, self.make_candidate)
        for item in build_test_items(new, self.namespace):
            if item.wants_to_run(self.namespace):
                self.attempt(item.name, partial(session.run, item), can_check=item.name in checking)
        self.attempt("teardown", session.close, can_check=False)
        for value in new.values():
            if is_test_case(value):
                self.run_case(value, checking)

    def run_statements(self, text: ParsedText) -> bool:
        """Runs the statements at the top. Each that checks something is a test, together with those before it. False:
        the text wants to be skipped."""
        pieces: list[list[ast.stmt]] = [[]]
        for statement in text.tree.body:
            pieces[-1].append(statement)
            if statement in text.statements:
                pieces.append([])
        self.ended_early = False
        for piece in pieces:
            last = piece is pieces[-1]
            if not self.attempt("the top", partial(self.execute, piece), can_check=not last):
                return False
            if self.ended_early:
                break
        return True

    def execute(self, statements: list[ast.stmt]) -> None:
        try:
            exec(compile(ast.Module(statements, []), "tests.py", "exec"), self.namespace)
        except SystemExit as error:
            if isinstance(error, ProgramExit) or error.code:
                raise
            self.ended_early = True

    def run_doctest(self, text: str) -> None:
        doctest = importlib.import_module("doctest")
        test = doctest.DocTestParser().get_doctest(text, dict(self.namespace), "tests", None, 0)
        self.num_checked += sum(bool(example.want) for example in test.examples)
        said: list[str] = []
        if doctest.DocTestRunner(verbose=False).run(test, out=said.append).failed:
            raise AssertionError("".join(said)[-500:])

    def run_case(self, case: Any, checking: set[str]) -> None:
        """Runs a class of unittest."""
        unittest = sys.modules["unittest"]
        suite = unittest.TestLoader().loadTestsFromTestCase(case)
        num_reported, num_tests = self.num_reported, suite.countTestCases()
        result = build_test_result(self, checking)
        suite.run(result)
        self.refuse_broken(result.broken)
        if result.setup_problem:  # of the class, so that none of its tests ran
            for _ in range(num_tests - (self.num_reported - num_reported)):
                self.judge(case.__name__, result.setup_problem, True, False, False)

    def run_calls(self, calls: Sequence[tuple[list[Any], dict[str, Any], list[Any]]]) -> None:
        """Calls the program's function: arguments, named arguments, and the values that it may return."""
        for number, call in enumerate(calls):
            self.attempt(f"input {number}", partial(self.run_call, *call))

    def run_call(self, arguments: list[Any], named: dict[str, Any], accepted: list[Any]) -> None:
        result = self.make_candidate()(*arguments, **named)
        self.count_check()
        if not any(equals_test_value(result, value) for value in accepted):
            raise AssertionError("the function returns another value")


def is_test_case(value: Any) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and isinstance(value, type) and issubclass(value, unittest.TestCase)


def build_test_result(runner: Runner, checking: set[str]) -> Any:
    """What unittest reports to. Made here, since most tests do without unittest and its import takes a while."""

    class Result(sys.modules["unittest"].TestResult):  # type: ignore[misc]
        broken: BaseException | None = None
        setup_problem = ""

        def startTest(self, test: Any) -> None:
            self.before, self.problem, self.skipped_now = (runner.num_checked, runner.peer.num_asked), "", False

        def addError(self, test: Any, error: Any) -> None:
            self.broken = self.broken or error[1]
            self.problem = describe_test_error(error[1])
            if not hasattr(test, "_testMethodName"):
                self.setup_problem = self.problem

        def addFailure(self, test: Any, error: Any) -> None:
            self.problem = describe_test_error(error[1])

        def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
            if error is not None:
                self.addError(test, error)

        def addSkip(self, test: Any, reason: str) -> None:
            self.skipped_now = True

        def addExpectedFailure(self, test: Any, error: Any) -> None:
            self.skipped_now = True

        def addUnexpectedSuccess(self, test: Any) -> None:
            self.problem = "it passes, and was expected to fail"

        def stopTest(self, test: Any) -> None:
            if not self.skipped_now or self.problem:
                checked, asked = self.before
                name = test._testMethodName
                happened = runner.num_checked > checked, runner.peer.num_asked > asked
                runner.judge(name, self.problem, name in checking, *happened)

    return Result()


def equals_test_value(result: Any, expected: Any) -> bool:
    """Equal as JSON: tuples are lists, keys are text. A float may differ by a millionth."""
    if isinstance(expected, list | tuple):
        same = isinstance(result, list | tuple) and len(result) == len(expected)
        return same and all(map(equals_test_value, result, expected))
    if isinstance(expected, dict):
        if not isinstance(result, dict) or len(result) != len(expected):
            return False
        found = {str(key): value for key, value in result.items()}
        return all(str(key) in found and equals_test_value(found[str(key)], value) for key, value in expected.items())
    if isinstance(expected, float) and isinstance(result, int | float) and not isinstance(result, bool):
        return result == expected or math.isclose(result, expected, rel_tol=1e-6, abs_tol=1e-9)
    return bool(result == expected)

"""What a test finds when it imports `pytest` in the sandbox: the names that tests use, for the runner of `runner.py`.

The real pytest stays outside. The sandbox holds the standard library and what happens to be installed beside it, and a
reward must not depend on that; pytest takes longer to import than most tests take to run. Standard library alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any


class Skipped(BaseException):
    """The test does not want to run."""


class XFailed(BaseException):
    """The test expects to fail."""


class Failed(AssertionError):
    """`pytest.fail`, or an error that did not come."""


def skip(reason: str = "", *, allow_module_level: bool = False, msg: str = "") -> None:
    raise Skipped(reason or msg)


def xfail(reason: str = "") -> None:
    raise XFailed(reason)


def fail(reason: str = "", pytrace: bool = True, msg: str = "") -> None:
    raise Failed(reason or msg)


def exit(reason: str = "", returncode: int = 1) -> None:
    raise Failed(reason or "pytest.exit")


def main(*arguments: Any, **options: Any) -> int:
    """Does nothing: the runner collects the tests anyway."""
    return 0


def importorskip(name: str, minversion: str | None = None, reason: str | None = None, **options: Any) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(reason or str(error)) from None


# marks


class Mark:
    """`pytest.mark.NAME`, with its arguments. Called with a function or class alone, it marks it."""

    def __init__(self, name: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs or {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]) and hasattr(args[0], "__name__"):
            target = args[0]
            target.pytestmark = [*vars(target).get("pytestmark", []), self]
            return target
        return Mark(self.name, (*self.args, *args), self.kwargs | kwargs)


class Marks:
    def __getattr__(self, name: str) -> Mark:
        if name.startswith("_"):
            raise AttributeError(name)
        return Mark(name)


mark = Marks()


class Parameters:
    """One set of values for a parametrised test."""

    def __init__(self, values: tuple[Any, ...], marks: Any) -> None:
        self.values = values
        self.marks = list(marks) if isinstance(marks, list | tuple) else [marks]


def param(*values: Any, id: str | None = None, marks: Any = ()) -> Parameters:
    return Parameters(values, marks)


# fixtures


class Fixture:
    """A function whose result tests ask for by its name."""

    def __init__(self, function: Callable[..., Any], scope: Any, params: Any, autouse: bool, name: str | None) -> None:
        self.function, self.scope, self.autouse = function, scope, autouse
        self.params = None if params is None else list(params)
        self.name = name or function.__name__


def fixture(
    function: Any = None, *, scope: Any = "function", params: Any = None, autouse: bool = False, ids: Any = None,
    name: str | None = None,
) -> Any:  # fmt: skip
    if function is not None:
        return Fixture(function, scope, params, autouse, name)
    return lambda found: Fixture(found, scope, params, autouse, name)


class FixtureRequest:
    """What a fixture gets as `request`."""

    def __init__(self, get: Callable[[str], Any], add_finalizer: Any, item: Any, param: Any) -> None:
        self.getfixturevalue, self.addfinalizer, self.param = get, add_finalizer, param
        self.function, self.instance, self.cls = item.function, item.instance, item.owner
        self.node, self.fixturename = item, ""


class MonkeyPatch:
    """Changes that end with the test. unittest.mock makes them, and takes them back."""

    def __init__(self) -> None:
        self.changes = contextlib.ExitStack()
        self.undo = self.changes.close

    def change(self, change: Any) -> None:
        self.changes.enter_context(change)

    def setattr(self, target: Any, name: Any, value: Any = mark, raising: bool = True) -> None:
        if value is mark:  # it is left out: the target is a dotted path
            self.change(mock().patch(target, name, create=not raising))
        else:
            self.change(mock().patch.object(target, name, value, create=not raising))

    def delattr(self, target: Any, name: str, raising: bool = True) -> None:
        if raising or hasattr(target, name):
            self.change(mock().patch.object(target, name))
            delattr(target, name)

    def setitem(self, mapping: Any, key: Any, value: Any) -> None:
        self.change(mock().patch.dict(mapping, {key: value}))

    def delitem(self, mapping: Any, key: Any, raising: bool = True) -> None:
        self.change(mock().patch.dict(mapping))
        if raising or key in mapping:
            del mapping[key]

    def setenv(self, name: str, value: Any, prepend: str | None = None) -> None:
        before = os.environ.get(name)
        self.setitem(os.environ, name, f"{value}{prepend}{before}" if prepend and before else str(value))

    def delenv(self, name: str, raising: bool = True) -> None:
        self.delitem(os.environ, name, raising)

    @classmethod
    @contextlib.contextmanager
    def context(cls) -> Iterator[MonkeyPatch]:
        patch = cls()
        with patch.changes:
            yield patch


def mock() -> Any:
    return importlib.import_module("unittest.mock")


class SubTests:
    """`with subtests.test(i=i):`, of which the first that fails ends the test here."""

    @contextlib.contextmanager
    def test(self, msg: str = "", **options: Any) -> Iterator[None]:
        yield


class Captured:
    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err

    def __iter__(self) -> Iterator[str]:
        return iter((self.out, self.err))


class CaptureFixture:
    """`capsys`: what tests and program have printed since the last look."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __init__(self) -> None:
        self.before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()

    def readouterr(self) -> Captured:
        texts = []
        for stream in (sys.stdout, sys.stderr):
            texts.append(stream.getvalue() if isinstance(stream, io.StringIO) else "")
            stream.seek(0)
            stream.truncate()
        return Captured(*texts)

    def close(self) -> None:
        sys.stdout, sys.stderr = self.before


# expectations


class ExceptionInfo:
    """The error that came. `value` and `type` are known when the block has ended."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    value: Any = None
    type: Any = None

    def match(self, pattern: Any) -> bool:
        if not re.search(pattern, str(self.value)):
            raise AssertionError(f"{pattern!r} does not match {str(self.value)!r}")
        return True

    def __str__(self) -> str:
        return repr(self.value)


class RaisesContext:
    def __init__(self, expected: Any, match: Any, check: Any) -> None:
        self.expected, self.pattern, self.check, self.info = expected, match, check, ExceptionInfo()

    def __enter__(self) -> ExceptionInfo:
        return self.info

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
        if kind is None:
            raise Failed(f"did not raise {self.expected}")
        if not issubclass(kind, self.expected):
            return False
        self.info.value, self.info.type = value, kind
        if self.pattern is not None:
            self.info.match(self.pattern)
        if self.check is not None and not self.check(value):
            raise AssertionError(f"the check refused {value!r}")
        return True


def raises(expected: Any = Exception, *args: Any, match: Any = None, check: Any = None, **kwargs: Any) -> Any:
    context = RaisesContext(expected, match, check)
    if not args:
        return context
    with context as info:
        args[0](*args[1:], **kwargs)
    return info


class WarnsContext(warnings.catch_warnings):
    def __init__(self, expected: Any, match: Any) -> None:
        super().__init__(record=True)
        self.expected, self.pattern = expected, match

    def __enter__(self) -> Any:
        self.found = super().__enter__()
        warnings.simplefilter("always")
        return self.found

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None and not any(
            issubclass(each.category, self.expected) and re.search(self.pattern or "", str(each.message))
            for each in self.found or ()
        ):
            raise Failed(f"did not warn {self.expected}")


def warns(expected: Any = Warning, *args: Any, match: Any = None, **kwargs: Any) -> Any:
    context = WarnsContext(expected, match)
    if not args:
        return context
    with context:
        return args[0](*args[1:], **kwargs)


def deprecated_call(*args: Any, match: Any = None, **kwargs: Any) -> Any:
    return warns((DeprecationWarning, PendingDeprecationWarning, FutureWarning), *args, match=match, **kwargs)


class approx:
    """Equal within a tolerance: a millionth of the expected number, at least 1e-12. Sequences and mappings are compared
    by their entries."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expected: Any, rel: Any = None, abs: Any = None, nan_ok: bool = False) -> None:
        self.expected = expected.tolist() if hasattr(expected, "tolist") else expected
        self.rel, self.abs, self.nan_ok = rel, abs, nan_ok

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    def __eq__(self, actual: Any) -> bool:
        return self.near(actual, self.expected)

    def near(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            same = isinstance(actual, dict) and actual.keys() == expected.keys()
            return same and all(self.near(actual[key], value) for key, value in expected.items())
        if isinstance(expected, list | tuple):
            same = isinstance(actual, list | tuple) and len(actual) == len(expected)
            return same and all(map(self.near, actual, expected))
        if isinstance(expected, bool) or not isinstance(expected, Number):
            return bool(actual == expected)
        if not isinstance(actual, Number):
            return False
        return bool(actual == expected) or self.near_number(actual, expected)

    def near_number(self, actual: Any, expected: Any) -> bool:
        if expected != expected:
            return self.nan_ok and actual != actual
        size = abs(expected)
        if math.isinf(size):
            return False
        absolute = 1e-12 if self.abs is None else float(self.abs)
        relative = float(self.rel) if self.rel is not None else 1e-6 if self.abs is None else 0.0
        return bool(abs(actual - expected) <= max(relative * float(size), absolute))

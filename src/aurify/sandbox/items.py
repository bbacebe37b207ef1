"""Test functions and the values they ask for: parameters and fixtures, as in pytest. Standard library alone: it runs
inside the sandbox, on the side of the tests."""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from aurify.sandbox.pytest_stand_in import (
    CaptureFixture,
    Fixture,
    FixtureRequest,
    Mark,
    MonkeyPatch,
    Parameters,
    SubTests,
)


class Broken(Exception):
    """The tests cannot work, whatever the program does."""


class Item:
    """A test function and one set of values for it. owner: its class. given: parameters, by the names of arguments.
    for_fixtures: parameters that go to fixtures, by the names of fixtures."""

    def __init__(self, function: Any, owner: Any, bound: bool, marks: list[Mark]) -> None:
        self.function, self.owner, self.bound, self.marks = function, owner, bound, marks
        self.name, self.instance = function.__name__, None
        self.given: dict[str, Any] = {}
        self.for_fixtures: dict[str, Any] = {}

    def with_values(self, given: dict[str, Any], for_fixtures: dict[str, Any], marks: list[Mark]) -> Item:
        item = Item(self.function, self.owner, self.bound, [*self.marks, *marks])
        item.given, item.for_fixtures = self.given | given, self.for_fixtures | for_fixtures
        return item

    def wants_to_run(self, namespace: dict[str, Any]) -> bool:
        for mark in self.marks:
            if mark.name == "skip":
                return False
            if mark.name in ("skipif", "xfail"):  # what is expected to fail proves nothing either way
                condition = mark.args[0] if mark.args else mark.kwargs.get("condition", True)
                if eval(condition, namespace) if isinstance(condition, str) else condition:
                    return False
        return True


# collecting


def build_test_items(new: dict[str, Any], namespace: dict[str, Any]) -> list[Item]:
    """The tests among new names of a module. Classes of unittest are left out."""
    module_marks = list_pytest_marks(namespace.get("pytestmark"))
    found: list[Item] = []
    for name, value in new.items():
        if isinstance(value, types.FunctionType) and name.startswith("test"):
            found.append(Item(value, None, False, module_marks + list_pytest_marks(vars(value).get("pytestmark"))))
        elif is_test_class(name, value):
            found += build_class_items(value, module_marks)
    return [item for base in found for item in expand_test_item(base, Lookup(namespace, base.owner))]


def list_pytest_marks(value: Any) -> list[Mark]:
    found = value if isinstance(value, list | tuple) else [value]
    return [mark for mark in found if isinstance(mark, Mark)]


def is_test_class(name: str, value: Any) -> bool:
    return (
        name.startswith("Test")
        and isinstance(value, type)
        and value.__init__ is object.__init__  # type: ignore[misc]
        and vars(value).get("__test__", True)
    )


def build_class_items(owner: type, marks: list[Mark]) -> Iterator[Item]:
    lineage = [kind for kind in reversed(owner.__mro__) if kind is not object]
    members = {name: value for kind in lineage for name, value in vars(kind).items()}
    own_marks = marks + [mark for kind in lineage for mark in list_pytest_marks(vars(kind).get("pytestmark"))]
    for name, value in members.items():
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType) and name.startswith("test"):
            bound = not isinstance(value, staticmethod)
            yield Item(function, owner, bound, own_marks + list_pytest_marks(vars(function).get("pytestmark")))
        elif is_test_class(name, value):
            yield from build_class_items(value, own_marks)


def expand_test_item(item: Item, lookup: Lookup) -> list[Item]:
    """One item for each combination of its parameters, and of those of the fixtures that it uses."""
    items = [item]
    for mark in item.marks:
        if mark.name == "parametrize":
            sets = list(list_test_parameters(mark))
            items = [each.with_values(*values) for values in sets for each in items]
    for fixture in lookup.used_by(item):
        if fixture.params is not None and items and fixture.name not in items[0].for_fixtures:
            params = [param if isinstance(param, Parameters) else Parameters((param,), ()) for param in fixture.params]
            items = [
                each.with_values({}, {fixture.name: param.values[0]}, param.marks) for param in params for each in items
            ]
    return items


def list_test_parameters(mark: Mark) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[Mark]]]:
    """For each row of `parametrize`: values for arguments, values for fixtures, and marks."""
    keywords = dict(zip(("argnames", "argvalues"), mark.args, strict=False)) | mark.kwargs
    names = keywords["argnames"]
    single = isinstance(names, str) and len(names.replace(",", " ").split()) == 1  # then a row is a value
    names = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    indirect = keywords.get("indirect", False)
    to_fixtures = names if indirect is True else list(indirect or ())
    for row in keywords["argvalues"]:
        marks: list[Mark] = []
        if isinstance(row, Parameters):
            marks, row = row.marks, row.values
        elif single:
            row = (row,)
        values = tuple(row)
        if len(values) != len(names):
            raise Broken(f"parametrize has {len(names)} names and a row of {len(values)} values")
        named = dict(zip(names, values, strict=True))
        direct = {name: value for name, value in named.items() if name not in to_fixtures}
        yield direct, {name: named[name] for name in to_fixtures}, marks


def list_test_arguments(function: Any, bound: bool) -> list[str]:
    """The arguments that a function needs: those without defaults, `self`, and mocks that `patch` puts in."""
    patched = [each for each in getattr(function, "patchings", ()) if each.attribute_name is None]
    num_mocks = sum(type(each.new).__name__ == "_SentinelObject" for each in patched)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = function.__code__
    names = list(code.co_varnames[: code.co_argcount])
    names = names[: len(names) - len(function.__defaults__ or ())][int(bound) + num_mocks :]
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return names + [name for name in keywords if name not in (function.__kwdefaults__ or {})]


# fixtures


class Lookup:
    """Finds fixtures by name: those of the class first, then those of the module."""

    def __init__(self, namespace: dict[str, Any], owner: Any) -> None:
        kinds = reversed(owner.__mro__) if owner else ()
        own = [value for kind in kinds for value in vars(kind).values() if isinstance(value, Fixture)]
        shared = [value for value in namespace.values() if isinstance(value, Fixture)]
        self.fixtures = {fixture.name: fixture for fixture in (*shared, *own)}
        self.own = {fixture.name for fixture in own}

    def arguments(self, fixture: Fixture) -> list[str]:
        return list_test_arguments(fixture.function, fixture.name in self.own)

    def direct_names(self, item: Item) -> list[str]:
        names = [fixture.name for fixture in self.fixtures.values() if fixture.autouse]
        names += [str(name) for mark in item.marks if mark.name == "usefixtures" for name in mark.args]
        return names + list_test_arguments(item.function, item.bound)

    def used_by(self, item: Item) -> list[Fixture]:
        names = self.direct_names(item)
        found: dict[str, Fixture] = {}
        for name in names:
            if name in self.fixtures and name not in found and name not in item.given:
                found[name] = self.fixtures[name]
                names += self.arguments(found[name])
        return list(found.values())


class Session:
    """Runs items. Fixtures of a scope beyond one test, and the setup of classes and modules, last until `close`."""

    def __init__(self, namespace: dict[str, Any], make_candidate: Callable[[], Any]) -> None:
        self.namespace, self.make_candidate = namespace, make_candidate
        self.kept: dict[Any, Any] = {}
        self.lasting = contextlib.ExitStack()

    def close(self) -> None:
        self.kept.clear()
        self.lasting.close()

    def run(self, item: Item) -> None:
        with contextlib.ExitStack() as stack:
            self.set_up("module", self.namespace.get, None)
            if item.owner:
                self.set_up("class", lambda name: getattr(item.owner, name, None), item.owner)
                item.instance = item.owner()
                run_test_setup("method", lambda name: find_setup_method(item.instance, name), item.function, stack)
            else:
                run_test_setup("function", self.namespace.get, item.function, stack)
            values = Values(self, item, stack)
            arguments = {name: values.get(name) for name in values.lookup.direct_names(item)}
            names = list_test_arguments(item.function, item.bound)
            function = item.function.__get__(item.instance) if item.bound else item.function
            await_test_result(function(**{name: arguments[name] for name in names}))

    def set_up(self, kind: str, find: Callable[[str], Any], owner: Any) -> None:
        if (kind, owner) not in self.kept:
            self.kept[kind, owner] = True
            run_test_setup(kind, find, owner, self.lasting)


def run_test_setup(kind: str, find: Callable[[str], Any], argument: Any, stack: contextlib.ExitStack) -> None:
    """Calls `setup_KIND`, and `teardown_KIND` when the stack ends."""
    before, after = find(f"setup_{kind}"), find(f"teardown_{kind}")
    if isinstance(before, types.FunctionType | types.MethodType):
        call_test_setup(before, argument)
    if isinstance(after, types.FunctionType | types.MethodType):
        stack.callback(call_test_setup, after, argument)


def find_setup_method(instance: Any, name: str) -> Any:
    """`setup_method`; also `setup`, as nose and older versions of pytest call it."""
    return getattr(instance, name, None) or getattr(instance, name.removesuffix("_method"), None)


def call_test_setup(function: Any, argument: Any) -> Any:
    """Calls a function with the argument if it takes one."""
    bound = getattr(function, "__self__", None) is not None
    return function(*[argument][: len(list_test_arguments(getattr(function, "__func__", function), bound))])


def await_test_result(result: Any) -> Any:
    """Waits for the result of an async function."""
    if isinstance(result, types.CoroutineType):
        return importlib.import_module("asyncio").run(result)
    return result


class Values:
    """The values that one item gets."""

    def __init__(self, session: Session, item: Item, stack: contextlib.ExitStack) -> None:
        self.session, self.item, self.stack = session, item, stack
        self.lookup = Lookup(session.namespace, item.owner)
        self.own: dict[Any, Any] = {}

    def get(self, name: str) -> Any:
        if name in self.item.given:
            return self.item.given[name]
        fixture = self.lookup.fixtures.get(name)
        if fixture is None:
            if name not in self.own:
                self.own[name] = self.builtin(name)
            return self.own[name]
        lasting = fixture.scope != "function"
        values, stack = (self.session.kept, self.session.lasting) if lasting else (self.own, self.stack)
        key = fixture, self.item.owner if fixture.scope == "class" else None, id(self.item.for_fixtures.get(name))
        if key not in values:
            values[key] = self.build(fixture, stack)
        return values[key]

    def build(self, fixture: Fixture, stack: contextlib.ExitStack) -> Any:
        request = FixtureRequest(self.get, stack.callback, self.item, self.item.for_fixtures.get(fixture.name))
        names = self.lookup.arguments(fixture)
        arguments = {name: request if name == "request" else self.get(name) for name in names}
        function = fixture.function.__get__(self.item.instance) if fixture.name in self.lookup.own else fixture.function
        result = await_test_result(function(**arguments))
        if isinstance(result, types.GeneratorType):
            value = next(result)
            stack.callback(next, result, None)
            return value
        if isinstance(result, types.AsyncGeneratorType):
            loop = importlib.import_module("asyncio").new_event_loop()
            stack.callback(lambda: loop.run_until_complete(result.aclose()))
            return loop.run_until_complete(result.__anext__())
        return result

    def builtin(self, name: str) -> Any:
        """What pytest itself offers, as far as it makes sense here. See BUILTIN_FIXTURES in `checks.py`."""
        if name == "candidate":
            return self.session.make_candidate()
        if name == "request":
            return FixtureRequest(self.get, self.stack.callback, self.item, None)
        if name == "monkeypatch":
            patch = MonkeyPatch()
            self.stack.callback(patch.undo)
            return patch
        if name == "subtests":
            return SubTests()
        if name in ("capsys", "capfd"):
            captured = CaptureFixture()
            self.stack.callback(captured.close)
            return captured
        raise Broken(f"there is no fixture {name!r} in the sandbox")

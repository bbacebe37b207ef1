"""What a person's own part must look like, and how the options of a recipe reach it.

`find_signature_problem` is asked when a part is registered, so that a wrong signature is named with file and line
before anything runs. `convert_call_options` and `call_with_options` check options by the signature: their names, and
their types if they are annotated."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

from aurify.config import convert_value, did_you_mean, prefix_errors
from aurify.errors import UserError
from aurify.types import Lesson, Per

EXPECTED = {
    "task": "a function of its options that returns a TaskSet",
    "dataset": "a function of its options that returns rows, or one of (row, ...options) that changes or judges one",
    "reward": "(task, trajectory), (prompts, completions, ...), or only options, to return one of those two",
    "tool": "a function with typed, named parameters, or a class of its options with a method call(...) of that kind",
    "environment": "(task, ...options), with the methods start(), step(message) and close(), plain or async",
    "algorithm": "a dataclass with learns_from, needs, per and loss(out, batch); put the decorator above @dataclass",
}
NO_OPTIONS = ("task", "prompt", "completion", "response")  # a reward's parameters that no recipe can give


def find_signature_problem(kind: str, entry: Any) -> str | None:
    """What is wrong with an entry, as the end of a sentence that begins with its name; None if nothing is."""
    if not callable(entry):
        return f"is {entry!r}, which cannot be called"
    try:
        signature = inspect.signature(entry)
    except (TypeError, ValueError):  # written in C: it says nothing about itself
        return None
    if kind == "algorithm":
        return find_algorithm_problem(entry)
    if kind == "environment":
        return find_environment_problem(entry, signature)
    if kind == "tool":
        return find_tool_problem(entry, signature)
    if kind == "reward" and ("trajectory" in signature.parameters or takes_completions(signature)):
        given = (None, None) if "trajectory" in signature.parameters else ()
        return None if not given or binds_arguments(signature, *given) else f"takes {signature}"
    if inspect.iscoroutinefunction(entry) or inspect.isasyncgenfunction(entry):
        return f"takes {signature} and is async"
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            return f"takes {signature}, and options come by name, not by position"
        if kind == "reward" and name in NO_OPTIONS and parameter.default is parameter.empty:
            return f"takes {signature}"
    return None


def find_environment_problem(entry: Any, signature: inspect.Signature) -> str | None:
    if not takes_positional(signature, 1):
        return f"takes {signature}"
    if not inspect.isclass(entry):
        return None
    for name, given in (("start", ()), ("step", (None,)), ("close", ())):
        method = getattr(entry, name, None)
        if method is None:
            return f"has no {name}()"
        if not binds_arguments(inspect.signature(method), None, *given):
            return f"has {name}{inspect.signature(method)}"
    return None


def find_tool_problem(entry: Any, signature: inspect.Signature) -> str | None:
    if inspect.isclass(entry):
        return None if hasattr(entry, "call") or hasattr(entry, "tools") else "has no method call()"
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return None if all(p.kind in by_name for p in signature.parameters.values()) else f"takes {signature}"


def find_algorithm_problem(entry: Any) -> str | None:
    if not inspect.isclass(entry) or not dataclasses.is_dataclass(entry):
        return "is not a dataclass"
    for name in ("learns_from", "needs", "per", "loss"):
        if not hasattr(entry, name):
            return f"has no {name}"
    if not binds_arguments(inspect.signature(entry.loss), None, None, None):  # type: ignore[attr-defined]
        return f"has loss{inspect.signature(entry.loss)}"  # type: ignore[attr-defined]
    for name, hint in (("learns_from", Lesson), ("per", Per)):
        value = getattr(entry, name)
        if isinstance(value, str) and value not in get_args(hint):
            return f"has {name} = {value!r}, which is none of {', '.join(get_args(hint))}"
    if entry.learns_from == "rollouts" and not hasattr(entry, "advantages"):  # type: ignore[attr-defined]
        return "learns from rollouts and has no advantages(groups)"
    try:
        get_type_hints(entry)
    except NameError as error:
        return f"has an annotation that cannot be read ({error}); import that name outside of `if TYPE_CHECKING:`"
    return None


def binds_arguments(signature: inspect.Signature, *given: Any) -> bool:
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


def takes_completions(signature: inspect.Signature) -> bool:
    """Whether it is a reward in TRL's form, which may also take nothing but **columns."""
    names, kinds = set(signature.parameters), {parameter.kind for parameter in signature.parameters.values()}
    named = bool(names & {"prompts", "completions", "completion_ids", "environments"})
    return "trajectory" not in names and (named or kinds == {inspect.Parameter.VAR_KEYWORD})


def takes_positional(signature: inspect.Signature, num: int) -> bool:
    """Whether `num` arguments can be given by position."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return sum(kind in by_position for kind in kinds) >= num or inspect.Parameter.VAR_POSITIONAL in kinds


def split_options(kind: str, entry: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a recipe's entry for a registered part: a name, or {name: ..., options}."""
    options = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    if not isinstance(options.get("name"), str):
        raise UserError(f"{kind} {entry!r}: expected a name, or {{name: ..., options}}")
    return options.pop("name"), options


def convert_call_options(
    what: str, function: Callable[..., Any], options: Mapping[str, Any], num_given: int = 0
) -> dict[str, Any]:
    """The options of `function`, checked and converted. It also gets `num_given` arguments by position. what: names it
    in errors, as "task 'sorting'"."""
    parameters = dict(list(inspect.signature(function).parameters.items())[num_given:])
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for option in options:
        if option not in named and not open_ended:
            none = "; it has none" if not named else ""
            raise UserError(f"{what} has no option {str(option)!r}{did_you_mean(str(option), named)}{none}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in options:
            raise UserError(f"{what} needs the option {name!r}; write {{name: ..., {name}: ...}}")
    hints = read_signature_hints(function)
    with prefix_errors(what):
        return {
            name: convert_value(hints[name], value, name) if name in named and name in hints else value
            for name, value in options.items()
        }


def read_signature_hints(function: Any) -> dict[str, Any]:
    """Annotations of the parameters; none if they cannot be read, such as names that only a type checker sees."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):
        return {}


def call_with_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """`function(**options)` with checked options. What a person's own function raises is reported with its line."""
    values = convert_call_options(what, function, options)
    with report_crashes(what, function):
        return function(**values)


@contextmanager
def report_crashes(what: str, function: Any) -> Iterator[None]:
    """Turns what a person's own code raises into a user error with file and line. Errors in Aurify stay as they
    are."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if str(getattr(function, "__module__", "")).startswith("aurify."):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == find_source_file(function)] or frames
        where = f"{short_path(own[-1].filename)}:{own[-1].lineno}"
        raise UserError(f"{what} raised {type(error).__name__}: {error} ({where})") from error


def find_source_file(function: Any) -> str | None:
    try:
        return inspect.getsourcefile(function)
    except TypeError:
        return None


def short_path(file: str) -> str:
    """A path as people would write it from where they are."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

"""Functions that a model may call. Their schema comes from their signature, their arguments are checked by it.

    @aurify.tool
    def multiply(a: int, b: int) -> int:
        \"\"\"Multiply two whole numbers.\"\"\"
        return a * b

A tool with state, or with something to open and close, is a class: its options come from the recipe, the model calls
its method `call`, and each trajectory has an instance of its own. `shared = True` makes one instance for the run. A
class that brings several tools has a method `tools()` instead, which is asked once a trajectory."""

from __future__ import annotations

import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.errors import UserError

EMPTY = "(no output)"
MAX_SHOWN = 200  # characters of a wrong value in an error that the model reads


class CallError(Exception):
    """A call that cannot be made. Its text is for the model, so that it can call again in a better way."""


@dataclass(frozen=True)
class Tool:
    """name, description and parameters (a JSON schema) are what the model reads. function: takes the arguments as a
    mapping. blocking: it is a plain function and runs in a thread; False: it returns an awaitable. close: called at the
    end of the trajectory, where there is something to close."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[[Mapping[str, Any]], Any]
    close: Callable[[], Any] | None = None
    blocking: bool = True

    @property
    def schema(self) -> dict[str, Any]:
        """In the OpenAI form, as chat templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}


def make_tool(function: Callable[..., Any], *, name: str | None = None, close: Callable[[], Any] | None = None) -> Tool:
    """A tool out of a typed function. The docstring's first paragraph describes it. A line `a: the first factor` under
    `Args:` describes a parameter, and so does the text in `Annotated[int, "the first factor"]`."""
    from pydantic import TypeAdapter, ValidationError, validate_call

    name = name or function.__name__
    signature = inspect.signature(function)
    if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        raise UserError(f"tool {name!r} takes {signature}; a model calls by name, so each parameter needs one")

    @functools.wraps(function)
    def bind(*_: Any, **arguments: Any) -> dict[str, Any]:
        return arguments

    try:
        adapter: Any = TypeAdapter  # takes a function too, though its annotations do not say so
        schema = adapter(function).json_schema()
        checked = validate_call(bind)
    except Exception as error:  # pydantic has several for types that it cannot describe
        problem = str(error).partition("\n")[0]
        raise UserError(f"tool {name!r}: its parameters have no JSON schema ({problem}); use plain types") from None
    description, about = read_tool_docstring(function.__doc__ or "")
    parameters = tidy_schema(inline_schema_refs(schema))
    for parameter, text in (about | read_argument_notes(function)).items():
        if parameter in parameters["properties"]:
            parameters["properties"][parameter].setdefault("description", text)

    def call(arguments: Mapping[str, Any]) -> Any:
        try:
            values = checked(**arguments)
        except ValidationError as error:
            expected = describe_tool_signature(name, parameters)
            raise CallError(f"{describe_argument_problems(error.errors())}. Expected: {expected}") from None
        return function(**values)

    return Tool(name, description, parameters, call, close, blocking=not inspect.iscoroutinefunction(function))


def write_tool_result(result: Any) -> str:
    if result is None or result == "":
        return EMPTY
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


# ---------------------------------------------------------------------- schemas


def inline_schema_refs(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without `$ref`: chat templates write parameters as they are, and small models read no references.
    A type that contains itself stays a plain object where it begins again."""
    definitions = schema.get("$defs", {})

    def inline(value: Any, within: tuple[str, ...] = ()) -> Any:
        if isinstance(value, list):
            return [inline(item, within) for item in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("$ref"), str):
            name = value["$ref"].rpartition("/")[2]
            beside = {key: inline(item, within) for key, item in value.items() if key != "$ref"}
            if name in within or name not in definitions:
                return {"type": "object", **beside}
            return {**inline(definitions[name], (*within, name)), **beside}
        return {key: inline(item, within) for key, item in value.items() if key != "$defs"}

    inlined = inline(schema)
    assert isinstance(inlined, dict)
    return inlined


def tidy_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the titles and the closing words that pydantic adds: they cost tokens and tell the model nothing."""

    def tidy(value: Any, named: bool = False) -> Any:
        if isinstance(value, list):
            return [tidy(item) for item in value]
        if not isinstance(value, dict):
            return value
        if named:  # of properties: a parameter may be called "title"
            return {key: tidy(item) for key, item in value.items()}
        kept = {
            key: tidy(item, named=key == "properties")
            for key, item in value.items()
            if not (key == "title" and isinstance(item, str)) and not (key == "additionalProperties" and item is False)
        }
        options = kept.get("anyOf")
        if isinstance(options, list) and {"type": "null"} in options and len(options) == 2:  # Optional[X]: X
            [other] = [option for option in options if option != {"type": "null"}]
            kept = {**{key: item for key, item in kept.items() if key not in ("anyOf", "default")}, **other}
        return kept

    return {"type": "object", "properties": {}, **tidy(schema)}


def describe_tool_signature(name: str, parameters: Mapping[str, Any]) -> str:
    """`multiply(a: integer, b: integer)`, for errors that the model reads."""
    required = set(parameters.get("required", ()))
    arguments = [
        f"{key}: {describe_argument_type(schema)}{'' if key in required else ' (optional)'}"
        for key, schema in parameters.get("properties", {}).items()
    ]
    return f"{name}({', '.join(arguments)})"


def describe_argument_type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(describe_argument_type(option) for option in schema["anyOf"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {describe_argument_type(schema.get('items', {}))}"
    return str(kind)


def describe_argument_problems(problems: Sequence[Mapping[str, Any]]) -> str:
    """pydantic's findings in a sentence: "'b' is missing; 'a': Input should be a valid integer, not 'x'"."""
    told = []
    for problem in problems:
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"].startswith("missing"):
            told.append(f"{name!r} is missing")
        elif problem["type"].startswith("unexpected"):
            told.append(f"there is no argument {name!r}")
        else:
            message = problem["msg"].partition(",")[0]
            told.append(f"{name!r}: {message}, not {json.dumps(problem['input'], default=str)[:MAX_SHOWN]}")
    return "; ".join(told)


# ---------------------------------------------------------------------- docstrings


def read_tool_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what is said of parameters (Google's `Args:`, or `:param a:`)."""
    lines = inspect.cleandoc(text).splitlines()
    about = {m[1]: m[2].strip() for line in lines if (m := re.match(r"\s*:param (\w+):(.*)", line))}
    for number, line in enumerate(lines):
        if line.strip().lower().rstrip(":") in ("args", "arguments", "parameters") and line.strip().endswith(":"):
            name = ""
            for following in lines[number + 1 :]:
                if following and not following.startswith((" ", "\t")):
                    break
                if m := re.match(r"\s+\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*)", following):
                    name = m[1]
                    about[name] = m[2].strip()
                elif name and following.strip():
                    about[name] += " " + following.strip()
    first = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith(":param"):
            break
        first.append(line.strip())
    return " ".join(first), about


def read_argument_notes(function: Callable[..., Any]) -> dict[str, str]:
    """Plain texts in `Annotated[...]`, by parameter."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}
    texts = {}
    for name, hint in hints.items():
        if typing.get_origin(hint) is typing.Annotated:
            found = [item for item in typing.get_args(hint)[1:] if isinstance(item, str)]
            if found:
                texts[name] = " ".join(found)
    return texts

"""What a recipe can say, read from the code: keys from the dataclasses that a recipe is built into, with the comment
beside each field; options of methods, tasks, rewards and the rest from their signatures. `aurify help` shows one entry,
docs/reference.md all of them."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from aurify import registry

ANY_STAGE = "stages.NAME."
GIVEN = ("self", "task", "trajectory", "prompts", "completions", "row")  # by Aurify, not by a recipe


@dataclass(frozen=True)
class Option:
    key: str
    type: str
    default: str
    text: str


def list_recipe_keys() -> dict[str, list[Option]]:
    """All keys of a recipe, by the part of it in which they stand. Keys that stages share with the top stand there."""
    from aurify.pipeline.recipe import INHERITED, OfflineStage, OnlineStage, Recipe, Stage

    shared = (*INHERITED, "model")
    keys = {"The whole recipe": list(list_option_fields(Recipe))}
    for title, cls, known in (
        ("Every stage", Stage, shared),
        ("Stages that learn from rows", OfflineStage, [field.name for field in dataclasses.fields(Stage)]),
        ("Stages that learn from their own answers", OnlineStage, [field.name for field in dataclasses.fields(Stage)]),
    ):
        fields = list_option_fields(cls, ANY_STAGE)
        keys[title] = [one for one in fields if one.key.removeprefix(ANY_STAGE).split(".")[0] not in known]
    return keys


def list_option_fields(cls: type, prefix: str = "", default: Any = None) -> Iterator[Option]:
    """The fields of a dataclass of options, and those of the dataclasses inside. default: an instance of it."""
    from aurify.bounds import list_option_ranges
    from aurify.config import describe_hint, read_field_hints

    hints, ranges = read_field_hints(cls), {name: words for name, _, words in list_option_ranges(cls)}
    for field in dataclasses.fields(cls):
        if field.name not in hints:
            continue
        kind = describe_hint(hints[field.name]).removesuffix(" or null")
        kind += f", {ranges[field.name].removesuffix(' or null')}" if field.name in ranges else ""
        hint = hints[field.name]
        inner, value = find_option_class(hint), getattr(default, field.name, read_option_default(field))
        text = read_option_comments(cls).get(field.name) or (read_summary(inner) if inner else "")
        yield Option(prefix + field.name, kind, format_option_value(value), re.sub(r"\bNone\b", "null", text))
        if inner is not None and field.name != "stages":
            one_of_many = any(get_origin(part) is list for part in (hint, *get_args(hint)))
            yield from list_option_fields(inner, f"{prefix}{field.name}." + ("N." if one_of_many else ""), value)


def find_option_class(hint: Any) -> type | None:
    """The dataclass in X, X | None and list[X] | None."""
    if dataclasses.is_dataclass(hint):
        return hint  # type: ignore[return-value]
    inside = get_args(hint) if get_origin(hint) in (Union, UnionType, list) else ()
    return next(filter(None, map(find_option_class, inside)), None)


def read_option_default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def format_option_value(value: Any) -> str:
    if value in (dataclasses.MISSING, inspect.Parameter.empty):
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "" if dataclasses.is_dataclass(value) else repr(value)


@cache
def read_option_comments(cls: type) -> dict[str, str]:
    """field -> the comment at the end of its line, or the lines of comment above it."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        source = inspect.getsource(base)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        above = ""
        for number, line in enumerate(source.splitlines(), 1):
            if line.lstrip().startswith("#"):
                above += " " + comments[number]
                continue
            if (field := re.match(r" {4}(\w+): ", line)) and (text := comments.get(number, above)):
                found[field[1]] = text.strip()
            above = ""
    return found


def read_summary(thing: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    return re.split(r"(?<!\bDr)(?<!\bal)\. |[.:]$", " ".join(paragraph.split()))[0]


def explain_entry_briefly(kind: registry.Kind, name: str) -> str:
    """One sentence about a name of the registry. An algorithm is told by its module."""
    entry = registry.get_entry(kind, name)
    return read_summary(inspect.getmodule(entry) if kind == "algorithm" else entry)


def explain_entry(kind: registry.Kind, name: str) -> tuple[str, list[Option]]:
    """All that is said about a name of the registry, and its options."""
    entry = registry.get_entry(kind, name)
    if kind == "algorithm":
        return explain_entry_briefly(kind, name), list(list_option_fields(entry))
    return " ".join((inspect.getdoc(entry) or "").split()), list(list_entry_options(entry))


def list_entry_options(function: Any) -> Iterator[Option]:
    from aurify.config import describe_hint
    from aurify.signatures import read_signature_hints

    hints = read_signature_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in GIVEN and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            kind = describe_hint(hints[name]).removesuffix(" or null") if name in hints else ""
            yield Option(
                name, "anything" if hints.get(name) is Any else kind, format_option_value(parameter.default), ""
            )

"""From a YAML file to validated options, without a silent step.

`load_config` reads a recipe, lays it over the files it names under `base:`, applies dotted overrides, and only then
resolves `${...}`, so that an override reaches everything that refers to it. `build_options` turns such values into
frozen dataclasses: an unknown key, a missing key and a wrong type are errors that name the key. Options live beside the
code that reads them; this file knows none.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from aurify.errors import UserError
from aurify.foreign_keys import translate_key

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic import TypeAdapter

T = TypeVar("T")
FILE_SUFFIXES = (".yaml", ".yml", ".json")
SHORTHANDS = {"model": "name", "task": "name", "reward": "model"}  # `model: x` is short for `model: {name: x}`
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", type(None): "null"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a YAML file over those of its bases, with overrides such as `stages.sft.steps=3`, then `${...}`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    merged = read_yaml_with_bases(path, ())
    for override in overrides:
        apply_override(merged, override)
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: {quote_key(error.full_key or '')} cannot be resolved: {problem}") from error
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]


def dump_config(values: Mapping[str, Any]) -> str:
    """YAML that `load_config` reads back to the same values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(escape_interpolation(dict(values))))


def escape_interpolation(value: Any) -> Any:
    """Escapes `${`, which is text in a value that is resolved already, and the backslashes before it."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: escape_interpolation(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_interpolation(item) for item in value]
    return value


def read_yaml_with_bases(path: Path, opened: tuple[Path, ...]) -> DictConfig:
    """opened: the files that led here. A circle is an error."""
    from omegaconf import DictConfig, OmegaConf

    if path.resolve() in opened:
        circle = ", ".join(file.name for file in opened)
        raise UserError(f"{path}: `base:` leads back to this file; remove it from one of {circle}")
    values = read_yaml(path)
    bases = (
        OmegaConf.to_object(values.pop("base")) if OmegaConf.is_config(values.get("base")) else values.pop("base", None)
    )
    bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: 'base' is {bases!r}; expected a path, or a list of paths, relative to this file")
    for base in bases:
        if not (path.parent / base).exists():
            raise UserError(f"{path}: the base {missing_file(path.parent / base)}")
    layers = [read_yaml_with_bases(path.parent / base, (*opened, path.resolve())) for base in bases]
    merged = OmegaConf.merge(*layers, values)
    assert isinstance(merged, DictConfig)
    return merged


def read_yaml(path: Path) -> DictConfig:
    from omegaconf import DictConfig, OmegaConf
    from yaml import MappingNode, YAMLError, compose

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{missing_file(path)} (`aurify list recipes`: those that come along)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); give a YAML file") from error
    try:
        values = OmegaConf.create(text) if isinstance(compose(text), MappingNode) else None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}{yaml_problem(error)}") from error
    if values is None:
        found = f"found {text.strip()[:40]!r}" if text.strip() else "the file is empty"
        raise UserError(f"{path}: expected a mapping of keys to values, such as `name: my-run`; {found}")
    assert isinstance(values, DictConfig)
    return values


def yaml_problem(error: Exception) -> str:
    """`:3: found ...` for an error of PyYAML, which knows the line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = f":{mark.line + 1}" if mark is not None else ""
    return f"{line}: not valid YAML: {problem}; mind the indentation, and quote text that holds ':', '#', '@' or '{{'"


def missing_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {folder} either"
    names = [name for name in list_neighbours(path) if not path.suffix or name.endswith(path.suffix)]
    return f"{path}: no such file{did_you_mean(path.name, names)}"


def list_neighbours(path: Path) -> list[str]:
    """What lies beside a path, hidden files left out: nobody means them."""
    folder = path.parent
    return [entry.name for entry in folder.iterdir() if entry.name[0] != "."] if folder.is_dir() else []


def suggest_neighbour(path: Path) -> str:
    """`; did you mean ...?` with what lies beside a path that does not exist."""
    close = difflib.get_close_matches(path.name, list_neighbours(path), n=1, cutoff=0.5)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def apply_override(values: DictConfig, override: str) -> None:
    """Sets `a.b=3` in `values`. The value is typed as YAML would type it; a mapping replaces the one that was there."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, sign, text = override.partition("=")
    if not sign or not key or any(character.isspace() for character in key):
        raise UserError(
            f"override {override!r}: expected dotted.key=value without spaces around '=', such as stages.sft.steps=3"
        )
    parts = key.split(".")
    for depth in range(1, len(parts)):
        parent = ".".join(parts[:depth])
        node = OmegaConf.select(values, parent, throw_on_resolution_failure=False)
        if isinstance(node, str) and parts[depth - 1] in SHORTHANDS:
            OmegaConf.update(values, parent, {SHORTHANDS[parts[depth - 1]]: node}, merge=False)
        elif node is not None and not OmegaConf.is_config(node):
            raise UserError(
                f"override {override!r}: {parent!r} is {node!r} and has no keys of its own; "
                f"set it as a whole: {parent}=..."
            )
    try:
        typed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        OmegaConf.update(values, key, typed["value"], merge=False, force_add=True)  # type: ignore[call-overload, index]
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        problem = yaml_problem(error).split(": ", 1)[1]
        shell = "; the shell splits at spaces: put the whole override between quotes" if text[:1] in "{[" else ""
        raise UserError(f"override {override!r}: the value is {problem}{shell}") from error


def build_options(cls: type[T], values: Any, where: str = "") -> T:
    """A dataclass out of plain values, nested ones included. where: a file's name, the dotted key in it, or both
    ("recipe.yaml: stages.sft"), for errors."""
    file, _, key = where.rpartition(": ")
    if key.endswith(FILE_SUFFIXES):
        file, key = key, ""
    with prefix_errors(file):
        return build_options_at(cls, values, key)


@contextmanager
def prefix_errors(file: str | Path) -> Iterator[None]:
    """Puts the file's name before the text of user errors."""
    try:
        yield
    except UserError as error:
        if not str(file) or str(error).startswith(str(file)):
            raise
        raise UserError(f"{file}: {error}") from error


def build_options_at(cls: type[T], values: Any, key: str) -> T:
    hints = read_field_hints(cls)  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise UserError(f"{quote_key(key)} is {values!r}; expected a mapping with {join_names(hints)}")
    for name in values:
        if name not in hints:
            inside = next(find_config_keys(values, str(name)), None) if not key else None
            near = f"; did you mean {inside!r}?" if inside else did_you_mean(str(name), hints)
            foreign = translate_key(str(name), key, hints)
            raise UserError(f"unknown key {quote_key(join_config_keys(key, name))}{foreign or near}")
    specs = {spec.name: spec for spec in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in hints:
        required = specs[name].default is dataclasses.MISSING and specs[name].default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(
                f"missing key {quote_key(join_config_keys(key, name))}; expected {describe_hint(hints[name])}"
            )
    values = {name: fill_in_options(value, specs[name]) for name, value in values.items()}
    arguments = {name: convert_value(hints[name], value, join_config_keys(key, name)) for name, value in values.items()}
    try:
        return cls(**arguments)
    except ValueError as error:  # a check of the dataclass itself
        text = str(error)
        named = text.partition(":")[0] in hints
        raise UserError(join_config_keys(key, text) if named else f"{key}: {text}" if key else text) from error


def fill_in_options(value: Any, spec: dataclasses.Field[Any]) -> Any:
    """A mapping, with what the field's own default says otherwise than its class does: evaluation is greedy also where
    a recipe gives max_tokens of its sampling alone."""
    default = spec.default
    if not isinstance(value, Mapping) or not dataclasses.is_dataclass(default):
        return value
    own = {inner.name: getattr(default, inner.name) for inner in dataclasses.fields(default) if inner.init}
    usual = {inner.name: inner.default for inner in dataclasses.fields(default)}
    return {name: kept for name, kept in own.items() if usual[name] != kept and name not in value} | dict(value)


def find_config_keys(values: Mapping[Any, Any], name: str, above: str = "") -> Iterator[str]:
    """The dotted keys in the mappings inside `values` that end in `name`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = join_config_keys(above, key)
            if name in value:
                yield join_config_keys(inner, name)
            yield from find_config_keys(value, name, inner)


def convert_value(hint: Any, value: Any, key: str) -> Any:
    """One value to one type. Dataclasses and containers are walked here, so that errors name the inner key; pydantic
    does the rest."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in choices:
        return None
    for choice in choices:
        if dataclasses.is_dataclass(choice):
            if isinstance(value, choice):  # type: ignore[arg-type]
                return value
            if isinstance(value, Mapping):
                return build_options_at(choice, value, key)  # type: ignore[arg-type]
        origin, args = get_origin(choice), get_args(choice)
        if origin is dict and isinstance(value, Mapping):
            return {name: convert_value(args[1], item, join_config_keys(key, name)) for name, item in value.items()}
        if origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)) and args[1:] in ((), (...,)):
            items = [convert_value(args[0], item, join_config_keys(key, index)) for index, item in enumerate(value)]
            return items if origin is list else tuple(items)
    return convert_leaf(hint, choices, value, key)


def convert_leaf(hint: Any, choices: Sequence[Any], value: Any, key: str) -> Any:
    from pydantic import ValidationError

    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    problem = f"{quote_key(key)} is {shown}; expected {describe_hint(hint)}"
    plain = [choice for choice in choices if not dataclasses.is_dataclass(choice)]
    loose = any(choice in (bool, Any, object) or get_origin(choice) is Literal for choice in plain)
    if not plain or (isinstance(value, bool) and not loose):  # pydantic would read true as 1
        raise UserError(problem)
    try:
        return type_adapter(Union[tuple(plain)]).validate_python(value)  # noqa: UP007 (built at run time)
    except ValidationError as error:
        allowed = [item for choice in plain if get_origin(choice) is Literal for item in get_args(choice)]
        reason = did_you_mean(str(value), [str(item) for item in allowed], listing=False)
        if error.errors()[0]["type"] == "finite_number":
            reason = " that is finite"
        raise UserError(problem + reason) from error


@cache
def type_adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    options = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(hint, config=options)


@cache
def read_field_hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(cls) if spec.init}


def describe_hint(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_hint(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (list, tuple, Sequence):
        return f"a list ({describe_hint(args[0])} each)" if args else "a list"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint) or hint is dict:
        return "a mapping"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def did_you_mean(name: str, known: Iterable[str], *, listing: bool = True) -> str:
    """Suggests the known name that is spelt most like an unknown one, `; did you mean 'rank'?`, or lists the known ones
    if none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {join_names(names)}" if names and listing else ""


def join_names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:30]) + (f" and {len(ordered) - 30} more" if len(ordered) > 30 else "")


def join_config_keys(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def quote_key(key: str) -> str:
    return repr(key) if key else "the recipe"

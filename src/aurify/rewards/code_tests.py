"""The tests of a coding task, as its columns have them: those of MBPP, HumanEval, APPS, TACO, CodeContests,
LiveCodeBench, KodCode and others are read as they are. Values may be text, JSON as text, lists or numbers."""

from __future__ import annotations

import ast
import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aurify.sandbox.texts import strip_test_fence
from aurify.types import Task

PAIRS = ("inputs", "outputs")
COLUMNS = (  # of tests, in the order in which they are looked for; those of one entry go together
    ("tests",),
    ("test_list",),
    ("test_cases",),
    ("test",),
    ("challenge_test_list",),
    ("input_output",),
    ("public_test_cases", "private_test_cases"),
    ("public_tests", "private_tests", "generated_tests"),
    ("verification_info",),
)
TEXTS = {"tests", "test_list", "test_cases", "test", "challenge_test_list"}  # those that may be Python text
SETUP = ("setup", "test_setup_code", "test_imports")
NAMES = ("entry_point", "fn_name", "func_name", "function_name")
GIVEN = ("input", "inputs", "stdin")
EXPECTED = ("output", "outputs", "expected_output", "expected", "stdout")
CHECKS = re.compile(r"\bassert|\bdef test|>>>")
MAX_UNPACKED = 256 << 20  # bytes of LiveCodeBench's packed tests


@dataclass(frozen=True)
class Call:
    """Arguments of a function, and the values that it may return."""

    arguments: list[Any]
    named: dict[str, Any]
    accepted: list[Any]


@dataclass(frozen=True)
class CodeTests:
    """Texts of Python, calls of a function, or inputs and outputs of a script: one of the three."""

    texts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    scripts: tuple[tuple[str, str], ...] = ()  # (standard input, what is to be printed)
    setup: str = ""
    entry_point: str | None = None
    hint: str | None = None  # the function's name as the question writes it, where the columns do not name it


def has_code_tests(info: Mapping[str, Any]) -> bool:
    return next(find_code_test_columns(info), None) is not None


def find_code_test_columns(info: Mapping[str, Any]) -> Iterator[list[str]]:
    """Columns of tests that are not empty."""
    if all(is_filled_test(info.get(name)) for name in PAIRS):
        yield list(PAIRS)
    for names in COLUMNS:
        if found := [name for name in names if is_filled_test(info.get(name))]:
            yield found


def list_empty_test_columns(info: Mapping[str, Any]) -> list[str]:
    """Columns of tests that are there, but empty. One that is null does not count."""
    names = [*PAIRS, *(name for names in COLUMNS for name in names)]
    return [name for name in names if info.get(name) is not None and not is_filled_test(info[name])]


def is_filled_test(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", '""', "null")
    if isinstance(value, Mapping):
        return any(map(is_filled_test, value.values()))
    return value is not None and value is not False and (not hasattr(value, "__len__") or len(value) > 0)


def read_code_tests(task: Task) -> CodeTests | None:
    """None: the task has none. ValueError: they cannot be read."""
    columns = next(find_code_test_columns(task.info), None)
    if columns is None:
        return None
    try:
        found = read_test_columns(task.info, columns)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"the column {columns[0]!r} {error}") from None
    named = first_function_name(task.info)
    return replace(
        found,
        texts=tuple(map(strip_test_fence, found.texts)),
        setup="\n".join(line for name in SETUP for line in as_test_lines(task.info.get(name))),
        entry_point=found.entry_point or named,
        hint=find_tested_function(task),
    )


def read_test_columns(info: Mapping[str, Any], columns: list[str]) -> CodeTests:
    values = [unpack_tests(as_plain_test(info[name])) for name in columns]
    named = first_function_name(info)
    if columns == list(PAIRS):
        return read_test_pairs(*as_test_pairs(*values), named)
    if isinstance(values[0], str) and columns[0] in TEXTS:
        return CodeTests(texts=(values[0],))
    parts = [read_test_value(value, named) for value in values]
    if len({bool(part.calls) for part in parts}) > 1:
        raise ValueError("holds calls of a function, and its companions inputs of a script")
    return replace(
        parts[0],
        texts=tuple(text for part in parts for text in part.texts),
        calls=tuple(call for part in parts for call in part.calls),
        scripts=tuple(script for part in parts for script in part.scripts),
    )


def read_test_value(value: Any, named: str | None) -> CodeTests:
    """Tests as a list of texts, a list of {input, output}, or {input: [...], output: [...]}."""
    if isinstance(value, Mapping):
        own = first_function_name(value) or named
        given, expected = find_code_test_column(value, GIVEN), find_code_test_column(value, EXPECTED)
        if given is not None and expected is not None:
            return replace(
                read_test_pairs(*as_test_pairs(unpack_tests(given), unpack_tests(expected)), own), entry_point=own
            )
        inner = next(find_code_test_columns(value), None)
        if inner is None and all(isinstance(text, str) and CHECKS.search(text) for text in value.values()):
            return CodeTests(texts=tuple(value.values()))  # {"test_a": "assert ..."}
        if inner is None:
            raise ValueError(f"has the keys {', '.join(map(str, value))}; expected {GIVEN[0]!r} and {EXPECTED[0]!r}")
        return read_test_columns({**value, "entry_point": own}, inner)
    if not isinstance(value, list):
        raise ValueError(f"is {str(value)[:60]!r}; expected Python text, a list of texts, or inputs and outputs")
    entries = [read_test_code(unpack_tests(entry)) for entry in value]
    if all(isinstance(entry, str) for entry in entries):
        return CodeTests(texts=tuple(entries))
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("mixes kinds of tests; expected a list of texts, or of {input, output}")
    return read_code_test_entries(entries, named)


def read_test_code(entry: Any) -> Any:
    """The text of {"code": "assert ..."}; other entries as they are."""
    found = (
        find_code_test_column(entry, ("code", "test", "test_code", "assertion", "assert"))
        if isinstance(entry, Mapping)
        else None
    )
    return found if isinstance(found, str) and CHECKS.search(found) else entry


def read_code_test_entries(entries: Sequence[Mapping[str, Any]], named: str | None) -> CodeTests:
    """A list of {input, output}, as in LiveCodeBench: `testtype` says whether the input is for a function."""
    inputs, outputs = (
        [find_code_test_column(entry, GIVEN) for entry in entries],
        [find_code_test_column(entry, EXPECTED) for entry in entries],
    )
    for entry, given, expected in zip(entries, inputs, outputs, strict=True):
        if given is None or expected is None:
            raise ValueError(f"has an entry with the keys {', '.join(map(str, entry))}; expected 'input' and 'output'")
    kinds = {str(entry.get("testtype") or entry.get("type") or "") for entry in entries}
    own = next(filter(None, map(first_function_name, entries)), named)
    if any("stdin" in kind for kind in kinds):
        return read_test_pairs(inputs, outputs, None)
    calls = any("func" in kind for kind in kinds)
    return replace(read_test_pairs(inputs, outputs, own, calls=calls), entry_point=own)


def as_test_pairs(inputs: Any, outputs: Any) -> tuple[list[Any], list[Any]]:
    """Lists of inputs and outputs. A text, a number and the like are one of each."""
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        inputs, outputs = [pack_test_again(inputs)], [pack_test_again(outputs)]
    return inputs, outputs


def pack_test_again(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def read_test_pairs(inputs: list[Any], outputs: list[Any], named: str | None, *, calls: bool = False) -> CodeTests:
    if len(inputs) != len(outputs):
        raise ValueError(f"has {len(inputs)} inputs and {len(outputs)} outputs")
    if not inputs:
        raise ValueError("has no inputs")
    if named or calls or is_function_test(inputs, outputs):
        return CodeTests(calls=tuple(read_call_tests(inputs, outputs)))
    return CodeTests(
        scripts=tuple((as_test_input(given), as_test_input(out)) for given, out in zip(inputs, outputs, strict=True))
    )


def is_function_test(inputs: list[Any], outputs: list[Any]) -> bool:
    """Lists of arguments that are no lines of text, with results that are no text."""
    arguments = all(isinstance(given, list | Mapping) for given in inputs)
    lines = all(isinstance(given, list) and all(isinstance(line, str) for line in given) for given in inputs)
    results = all(isinstance(out, list) and all(isinstance(line, str) for line in out) for out in outputs)
    return arguments and not lines and not results and not all(isinstance(out, str) for out in outputs)


def as_test_input(value: Any) -> str:
    """Text as a script reads or prints it: a list has a line for each entry."""
    if isinstance(value, list):
        return "\n".join(" ".join(map(str, entry)) if isinstance(entry, list) else str(entry) for entry in value)
    if isinstance(value, Mapping):
        return json.dumps(value)
    return "" if value is None else str(value)


def read_call_tests(inputs: list[Any], outputs: list[Any]) -> Iterator[Call]:
    """Arguments stand in a list, or as JSON on a line each (LiveCodeBench). APPS wraps each result in a list."""
    wrapped = all(isinstance(out, list) and len(out) == 1 for out in outputs)
    for given, out in zip(inputs, outputs, strict=True):
        if isinstance(given, str):
            arguments = [read_test_literal(line) for line in given.split("\n") if line.strip()]
            yield Call(arguments, {}, [read_test_literal(out) if isinstance(out, str) else out])
        else:
            named = dict(given) if isinstance(given, Mapping) else {}
            arguments = [] if named else given if isinstance(given, list) else [given]
            yield Call(arguments, named, [out, out[0]] if wrapped else [out])


def read_test_literal(text: str) -> Any:
    """A value written as JSON or Python; otherwise the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def as_plain_test(value: Any) -> Any:
    """Lists and dicts out of arrays, tuples and the like."""
    if hasattr(value, "tolist"):
        return as_plain_test(value.tolist())
    if isinstance(value, list | tuple):
        return [as_plain_test(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: as_plain_test(entry) for key, entry in value.items()}
    return value


def unpack_tests(value: Any) -> Any:
    """A list or an object out of the text that holds it; other values as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{", '"'):
        found = read_test_literal(text)
        if isinstance(found, list | dict):
            return found
        if isinstance(found, str) and text[0] == '"' and not text.startswith('"""') and found != text:
            return unpack_tests(found)
    if re.fullmatch(r"eJ[A-Za-z0-9+/=\s]{20,}", text):
        return unpack_tests(unzip_tests(text))
    return value


class TextUnpickler(pickle.Unpickler):
    """Reads text and nothing else: a pickle could otherwise run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is in it; only text is unpacked")


def unzip_tests(text: str) -> str:
    """The private tests of LiveCodeBench: JSON, pickled, compressed, in base 64."""
    reader = zlib.decompressobj()
    try:
        data = reader.decompress(base64.b64decode(text), MAX_UNPACKED)
        found = str(TextUnpickler(io.BytesIO(data)).load())
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        reason = f"it is larger than {MAX_UNPACKED >> 20} MiB" if reader.unconsumed_tail else error
        raise ValueError(f"cannot be unpacked: {reason}") from None
    return found


def find_code_test_column(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def first_function_name(info: Mapping[str, Any]) -> str | None:
    """The function that the tests are for, from the columns themselves or from `metadata`."""
    found = find_code_test_column(info, NAMES)
    if found is None and is_filled_test(info.get("metadata")):
        metadata = unpack_tests(info["metadata"])
        found = find_code_test_column(metadata, NAMES) if isinstance(metadata, Mapping) else None
    return str(found) if found else None


def as_test_lines(value: Any) -> list[str]:
    value = unpack_tests(as_plain_test(value))
    return [str(line) for line in value] if isinstance(value, list) else [str(value)] if value else []


def find_tested_function(task: Task) -> str | None:
    """The last function that the starter code, the question or a known solution defines."""
    asked = [message.get("content") for message in reversed(task.prompt)]
    known = [*(task.info.get(name) for name in ("code", "canonical_solution", "solution")), task.answer]
    for text in (task.info.get("starter_code"), *asked, *known):
        if found := re.findall(
            r"^\s*(?:async\s+)?def\s+(\w+)\s*\(", text if isinstance(text, str) else "", re.MULTILINE
        ):
            return str(found[-1])
    return None

"""The forms in which models write calls: JSON, XML, Python, and a name before JSON.

A reader gets what stands between two marks. It returns entries like {"name": ..., "arguments": ...}, or None where the
text has another form."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Entries = list[Any]
Properties = Mapping[str, Mapping[str, Any]]  # tool -> its parameters, each with its schema

# <function=f><parameter=a>1</parameter></function> (Qwen3-Coder, Nemotron), <function=f>{"a": 1}</function> (Llama),
# <invoke name="f"><parameter name="a">1</parameter></invoke> (MiniMax, Muse)
FUNCTION = re.compile(
    r"""<(?:function=|(?:\w+:|\uff5cDSML\uff5c)?(?:function|invoke)\s+name=)["']?([^"'>\s]+)["']?\s*>(.*?)"""
    r"(?:</function>|</(?:\w+:|\uff5cDSML\uff5c)?invoke>|\Z)",
    re.DOTALL,
)
PARAMETER = re.compile(
    r"""<(?:parameter=|(?:\w+:|\uff5cDSML\uff5c)?parameter\s+name=)["']?([^"'>\s]+)["']?([^>]*)>(.*?)"""
    r"""(?:</(?:\w+:|\uff5cDSML\uff5c)?parameter>|(?=<parameter=)|\Z)""",
    re.DOTALL,
)
# f<arg_key>a</arg_key><arg_value>1</arg_value> (GLM)
NAME_ALONE = re.compile(r"\s*([\w.\-]+)\s*(?=<arg_key>|\Z)")
KEY_AND_VALUE = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
# f[ARGS]{...} (Mistral), functions.f:0<|tool_call_argument_begin|>{...} (Kimi), functions.f<|channel|>commentary json
# <|message|>{...} (gpt-oss), function<|tool▁sep|>f ```json {...} with wide bars (DeepSeek)
NAME_BEFORE = re.compile(
    r"\s*(?:function<\uff5ctool▁sep\uff5c>)?(?:functions\.)?([\w.\-]+)"
    r"(?::\d+|\[CALL_ID\]\w+|\[ARGS\]|<[|\uff5c][^>]*[|\uff5c]>|```|\bcommentary\b|\bjson\b|\s)*(?=\{)"
)
CALL_COLON = re.compile(r"\s*call:([\w.\-]+)\s*(?=\{)")  # call:f{a:<|"|>text<|"|>} (Gemma 4)
BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w\-]*)(?=\s*:)")
QUOTED_ARGUMENTS = re.compile(  # {"name": "f", "arguments": '{"a": 1}'} (Glaive)
    r"""\s*\{\s*["']name["']\s*:\s*["']([^"']+)["']\s*,\s*["']arguments["']\s*:\s*'(.*)'\s*\}\s*\Z""", re.DOTALL
)
PYTHON = re.compile(r"\s*\[?\s*[A-Za-z_][\w.]*\s?\(")
FENCED = re.compile(r"\s*```[ \t]*\w*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
DECODER = json.JSONDecoder()


def strip_fence(text: str) -> str:
    """Without a fence of Markdown around all of it."""
    fenced = FENCED.fullmatch(text)
    return fenced[1] if fenced else text


def read_call_form(text: str, properties: Properties) -> Entries | None:
    """Entries in the first form that fits; None where none does."""
    text = strip_fence(text)
    for reader in READERS:
        if entries := reader(text, properties):
            return entries
    return None


def read_json_calls(text: str, properties: Properties) -> Entries | None:
    """One value or several, and lists of them."""
    entries: Entries = []
    rest = text.strip()
    while rest:
        try:
            value, end = DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        entries += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip(" \t\r\n,;")
    return entries


def read_quoted_call_arguments(text: str, properties: Properties) -> Entries | None:
    found = QUOTED_ARGUMENTS.match(text)
    return [{"name": found[1], "arguments": found[2].replace("\\'", "'")}] if found else None


def read_xml_calls(text: str, properties: Properties) -> Entries | None:
    entries: Entries = []
    for name, body in FUNCTION.findall(text):
        given = PARAMETER.findall(body)
        if not given and body.strip():
            entries.append({"name": name, "arguments": body.strip()})
            continue
        arguments = type_call_arguments([(key, value) for key, _, value in given], properties.get(name, {}))
        arguments |= {key: value for key, attributes, value in given if 'string="true"' in attributes}  # DeepSeek V3.2
        entries.append({"name": name, "arguments": arguments})
    return entries


def read_key_calls(text: str, properties: Properties) -> Entries | None:
    found = NAME_ALONE.match(text)
    pairs = KEY_AND_VALUE.findall(text)
    if not found or not (pairs or found[1] in properties):  # any single word may be a name
        return None
    return [{"name": found[1], "arguments": type_call_arguments(pairs, properties.get(found[1], {}))}]


def read_named_calls(text: str, properties: Properties) -> Entries | None:
    if found := CALL_COLON.match(text):
        parts = re.split(r'<\|"\|>|<escape>', text[found.end() :])
        parts = [json.dumps(part) if k % 2 else BARE_KEY.sub(r'\1"\2"', part) for k, part in enumerate(parts)]
        rest = "".join(parts)
    elif found := NAME_BEFORE.match(text):
        rest = text[found.end() :]
    else:
        return None
    try:
        arguments, _ = DECODER.raw_decode(rest)
    except (ValueError, RecursionError):
        return None
    return [{"name": found[1], "arguments": arguments}]


def read_python_calls(text: str, properties: Properties) -> Entries | None:
    """[f(a=1), g()], f(a=1) or f.call(a=1). Without names, arguments take those of the schema in their order."""
    if not PYTHON.match(text):
        return None
    try:
        lines = ast.parse(text.strip()).body
        values = [line.value if isinstance(line, ast.Expr) else ast.Constant(None) for line in lines]
        lists = [value.elts if isinstance(value, ast.List | ast.Tuple) else [value] for value in values]
        return [read_python_call(call, properties) for calls in lists for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def read_python_call(call: ast.expr, properties: Properties) -> dict[str, Any]:
    if not isinstance(call, ast.Call):
        raise ValueError("no call")
    if ast.unparse(call.func) == "print" and len(call.args) == 1 and isinstance(call.args[0], ast.Call):
        call = call.args[0]  # Gemma prints what a tool returns
    name = ast.unparse(call.func).removesuffix(".call")
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError("no name")
    keywords = {str(keyword.arg): evaluate_call_argument(keyword.value) for keyword in call.keywords}
    given = [evaluate_call_argument(value) for value in call.args]
    if len(given) == 1 and isinstance(given[0], dict) and not keywords:
        return {"name": name, "arguments": given[0]}
    names = list(properties.get(name, {}))
    if len(given) > len(names) or None in (keyword.arg for keyword in call.keywords):
        raise ValueError("arguments without names")
    return {"name": name, "arguments": dict(zip(names, given, strict=False)) | keywords}


class Words(ast.NodeTransformer):
    """true, false and null as JSON means them."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(WORDS[node.id]) if node.id in WORDS else node


def evaluate_call_argument(node: ast.expr) -> Any:
    """As a JSON value: tuples become lists. Raises for everything that JSON cannot write."""
    return json.loads(json.dumps(ast.literal_eval(Words().visit(node))))


def type_call_arguments(pairs: Sequence[tuple[str, str]], schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {key.strip(): type_call_argument(value, schemas.get(key.strip(), {})) for key, value in pairs}


def type_call_argument(text: str, schema: Any) -> Any:
    """XML has no types: "1" is a text where the schema says so, else a number."""
    text = text.removeprefix("\n").removesuffix("\n")
    kinds, word = set(list_argument_types(schema)), text.strip()
    if "string" in kinds and not (word == "null" and "null" in kinds):
        return text
    if word in WORDS:
        return WORDS[word]
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return text


def list_argument_types(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        kinds = schema.get("type", ())
        yield from [kinds] if isinstance(kinds, str) else kinds
        for part in schema.get("anyOf", ()):
            yield from list_argument_types(part)


READERS: tuple[Callable[[str, Properties], Entries | None], ...] = (
    read_json_calls,
    read_quoted_call_arguments,
    read_xml_calls,
    read_named_calls,
    read_python_calls,
    read_key_calls,
)

"""The one validator of calls: JSON Schema by the library jsonschema (extra `tools`), once the schema is one.

Files write tools in dialects. Here all become plain JSON Schema: JSON text, parquet's nulls, the type names of Python
(BFCL: dict, float), of Gemini (OBJECT) and of xLAM ("int, optional", parameters without an object around them). A type
that nobody knows is named, since every call would break it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aurify.files import require
from aurify.rows.values import parse_json_value, parse_printed_value

TYPES = {  # of other dialects -> of JSON Schema; "" = any
    **dict.fromkeys(("dict", "map", "mapping", "hashmap", "struct", "record"), "object"),
    **dict.fromkeys(("list", "tuple", "set", "sequence", "arraylist", "iterable", "frozenset"), "array"),
    **dict.fromkeys(("str", "text", "char", "date", "time", "datetime", "url", "uri", "uuid", "email"), "string"),
    **dict.fromkeys(("path", "file", "bytes", "varchar", "strings"), "string"),
    **dict.fromkeys(("integers", "ints", "unsigned int", "positive integer"), "integer"),
    **dict.fromkeys(("numeric", "numbers", "floats"), "number"),
    **{"objects": "object", "dicts": "object", "booleans": "boolean", "lists": "array", "": ""},
    **dict.fromkeys(("int", "int32", "int64", "long", "short", "byte", "bigint"), "integer"),
    **dict.fromkeys(("float", "float32", "float64", "double", "decimal"), "number"),
    **dict.fromkeys(("none", "nonetype", "nil", "undefined"), "null"),
    **{"bool": "boolean", "any": "", "type_unspecified": ""},
    **{name: name for name in ("object", "array", "string", "integer", "number", "boolean", "null")},
}
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # name -> schema
NUMERIC = {name for name, kind in TYPES.items() if kind in ("integer", "number")}
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
WRAPPERS = ("tools", "functions", "functionDeclarations", "function_declarations")  # an object around a list of tools
LIMITS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "multipleOf")
KEYWORDS = {*NAMED, *LISTED, "type", "$ref", "required", "additionalProperties", "items", "enum"}


def read_tool_schemas(tools: Any) -> dict[str, dict[str, Any]]:
    """The schema of each tool's arguments."""
    schemas = {}
    for function in list_tool_functions(tools):
        keys = ("parameters", "input_schema", "inputSchema", "arguments")
        given: Any = next((function[key] for key in keys if function.get(key)), {})
        if isinstance(given, Mapping) and list(given) == ["json"]:  # Bedrock
            given = given["json"]
        schemas[function["name"]] = read_tool_parameters(given, function["name"])
    return schemas


def list_tool_functions(tools: Any) -> list[Mapping[str, Any]]:
    """What tools say of their functions, without what wraps them. tools: a list, or one tool, or JSON text of either,
    or of each."""
    given = unpack_tools(tools)
    if not isinstance(given, list | tuple):
        raise ValueError(f"the tools {str(tools)[:60]!r} are no list; expected a list of tools")
    functions = []
    unpacked = [(entry, unpack_tools(entry)) for entry in given]
    for tool in [
        part for entry, parts in unpacked for part in (parts if isinstance(parts, list) and parts else [entry])
    ]:
        function = (
            parse_json_value(tool.get("function") or tool.get("toolSpec") or tool)
            if isinstance(tool, Mapping)
            else None
        )
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            form = '{"name": ..., "parameters": {...}}'
            raise ValueError(f"the tool {str(tool)[:60]!r} has no name; expected {form}")
        functions.append(function)
    return functions


def unpack_tools(given: Any) -> Any:
    """A list of tools out of what holds them: text, one a line too, one tool alone, and objects around them."""
    found = parse_json_value(given)
    if isinstance(text := found, str) and text.strip():
        found = parse_printed_value(text)
        if found is text:
            found = [parse_json_value(line) for line in text.splitlines() if line.strip()]
            found = found if all(isinstance(line, Mapping) for line in found) else given
    if not isinstance(found, Mapping):
        return found or []
    if inner := next((found[key] for key in WRAPPERS if found.get(key)), None):
        return parse_json_value(inner)
    if "name" not in found and len(found) == 1 and isinstance(tool := next(iter(found.values())), Mapping):
        name = next(iter(found))
        return [found if name in ("function", "toolSpec") else {"name": name, **tool}]
    return [found]


def read_tool_parameters(given: Any, tool: str) -> dict[str, Any]:
    schema = parse_json_value(given) or {}
    if is_parameter_list(schema):
        schema = {"properties": schema}
    if not isinstance(schema, Mapping):
        raise ValueError(f"tool {tool!r}: its parameters are {str(given)[:60]!r}; expected a JSON schema")
    if is_property_parameters(schema):
        schema = {
            "properties": schema,
            "required": [name for name, part in schema.items() if is_needed_parameter(part)],
        }
    try:
        return {"type": "object", **standardise_schema(schema)}
    except ValueError as error:
        raise ValueError(f"tool {tool!r}: {error}") from None


def is_parameter_list(given: Any) -> bool:
    """[{"name": "a", "type": ...}]"""
    return isinstance(given, list) and all(isinstance(part, Mapping) and "name" in part for part in given)


def is_property_parameters(given: Mapping[str, Any]) -> bool:
    """xLAM names the parameters where others have a schema. A parameter may itself be called "type"."""
    values = [value for value in given.values() if value is not None]
    keywords = any(key in KEYWORDS and not isinstance(given[key], Mapping) for key in given if given[key] is not None)
    return bool(values) and not keywords and "properties" not in given and all(isinstance(v, Mapping) for v in values)


def is_needed_parameter(parameter: Any) -> bool:
    """Of xLAM: no default, and not called optional."""
    return (
        isinstance(parameter, Mapping)
        and parameter.get("default") is None
        and "optional" not in str(parameter.get("type")).lower()
    )


def standardise_schema(schema: Any) -> Any:
    """The same schema in plain JSON Schema."""
    schema = parse_json_value(schema)
    if isinstance(schema, str):
        return read_schema_type(schema)
    if not isinstance(schema, Mapping):
        return schema  # true and false are schemas, too
    schema = read_schema_keywords(schema)
    plain = {key: value for key, value in schema.items() if value is not None}
    for key in NAMED:
        if isinstance(plain.get(key), Mapping):
            plain[key] = {name: standardise_schema(part) for name, part in plain[key].items() if part is not None}
    for key in (*LISTED, *SINGLE):
        if key in plain:
            part = plain[key]
            plain[key] = (
                [standardise_schema(p) for p in part] if isinstance(part, list | tuple) else standardise_schema(part)
            )
    if isinstance(plain.get("required"), bool):  # said by the parameter itself, for the object that it belongs to
        del plain["required"]
    parts = schema.get("properties") or {}
    if needed := [name for name, part in parts.items() if isinstance(part, Mapping) and part.get("required") is True]:
        plain["required"] = [*plain.get("required", []), *needed]
    if "type" in plain:
        plain = {**read_schema_type(plain.pop("type")), **plain}
    if plain.pop("nullable", False):
        plain = {"anyOf": [plain, {"type": "null"}]}
    return plain


def read_schema_keywords(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose keywords have the form that they should: no JSON text, no empty choice, no limit as text."""
    plain = dict(schema)
    for key in ("properties", "required", "enum"):
        if isinstance(plain.get(key), str):
            found = parse_json_value(plain[key])
            plain[key] = [found] if isinstance(found, str) else found
    if is_parameter_list(plain.get("properties")):
        plain["properties"] = {part["name"]: {**part, "name": None} for part in plain["properties"]}
    for key in ("enum", "items", *LISTED):
        if plain.get(key) == []:
            del plain[key]
    if isinstance(plain.get("enum"), list) and str(plain.get("type")).lower() in NUMERIC:
        plain["enum"] = [parse_json_value(value) for value in plain["enum"]]
    for key in LIMITS:
        if isinstance(plain.get(key), str):
            plain[key] = parse_json_value(plain[key])
    if re.search("draft-0[34]", str(plain.get("$schema"))):
        del plain["$schema"]
    for key, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(exclusive := plain.get(key), bool):  # of draft 4
            del plain[key]
            if exclusive and limit in plain:
                plain[key] = plain.pop(limit)
    return plain


def read_schema_type(kind: Any) -> dict[str, Any]:
    """A type of any dialect as a schema: "OBJECT", "int, optional", "List[str]", "Union[int, str]", "str | None"."""
    if isinstance(kind, list | tuple):
        return join_schemas([read_schema_type(one) for one in kind])
    text = re.sub(r",?\s*(?:optional|required)\s*$", "", str(kind).strip(), flags=re.IGNORECASE)
    text = re.sub(r"\s*\([^()]*\)$", "", text.removeprefix("typing.")).replace("<", "[").replace(">", "]")
    text = re.sub(r"^(list|array)s? of (.+)$", r"\1[\2]", re.sub(r"\s+or\s+", "|", text), flags=re.IGNORECASE)
    if len(parts := split_schema_type(text, "|")) > 1:
        return join_schemas([read_schema_type(part) for part in parts])
    if text.endswith("[]"):
        return {"type": "array", "items": read_schema_type(text[:-2])}
    if generic := re.fullmatch(r"(\w+)\[(.*)\]", text, re.DOTALL):
        return read_generic_schema(generic[1].lower(), split_schema_type(generic[2], ","))
    name = text.lower()
    if name not in TYPES:
        known = "object, array, string, integer, number, boolean, null"
        raise ValueError(f"the type {kind!r} is unknown, so no call could satisfy it; write one of {known}")
    return {"type": TYPES[name]} if TYPES[name] else {}


def read_generic_schema(name: str, parts: list[str]) -> dict[str, Any]:
    if name == "literal":
        return {"enum": [json.loads(part.replace("'", '"')) for part in parts]}
    if name in ("optional", "union"):
        return join_schemas([read_schema_type(part) for part in (*parts, *(["null"] if name == "optional" else []))])
    base = read_schema_type(name)
    if base == {"type": "array"} and len(parts) == 1:
        return {**base, "items": read_schema_type(parts[0])}
    return base


def join_schemas(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One that any of them satisfies."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas} if all(schemas) else {}


def split_schema_type(text: str, separator: str) -> list[str]:
    """At separators that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == separator and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def find_schema_violation(arguments: Any, schema: Mapping[str, Any]) -> str | None:
    """The first thing in which arguments break a schema of `read_tool_schemas`, with its path, or None."""
    jsonschema = require("jsonschema", "tools", "to check calls against the schemas of tools")
    referencing = require("referencing", "tools", "to check calls against the schemas of tools")
    validator = build_schema_validator(json.dumps(schema))
    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except (referencing.exceptions.Unresolvable, re.error, RecursionError) as problem:
        raise ValueError(f"the schema of a tool cannot be used: {problem}") from None
    if error is None:
        return None
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return f"arguments{path}: {error.message}"


@lru_cache(maxsize=4096)
def build_schema_validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    found = json.loads(schema)
    draft = validator_for(found, default=Draft202012Validator)
    try:
        draft.check_schema(found)
    except SchemaError as error:
        raise ValueError(f"the schema of a tool is none: {error.message}") from None
    return draft(found, registry=Registry())  # references into the network are not followed

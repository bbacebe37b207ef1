"""Arguments against schemas: JSON Schema by the library, after dialects were made into it."""

from __future__ import annotations

import json

import pytest

from aurify.tools.schema import find_schema_violation, read_tool_schemas


def violation(arguments, parameters):
    [schema] = read_tool_schemas([{"name": "f", "parameters": parameters}]).values()
    return find_schema_violation(arguments, schema)


def properties(**parts):
    return {"type": "object", "properties": parts}


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "Rome", "days": 3, "unit": "C", "tags": ["a"]}, None),
        ({"city": "Rome", "days": 3.0}, None),
        ({}, "arguments: 'city' is a required property"),
        ({"city": 3}, "arguments.city: 3 is not of type 'string'"),
        ({"city": ""}, "arguments.city: '' should be non-empty"),
        ({"city": "Rome", "days": True}, "arguments.days: True is not of type 'integer'"),
        ({"city": "Rome", "days": 8}, "arguments.days: 8 is greater than the maximum of 7"),
        ({"city": "Rome", "unit": "K"}, "arguments.unit: 'K' is not one of ['C', 'F']"),
        ({"city": "Rome", "tags": ["a", 1]}, "arguments.tags[1]: 1 is not of type 'string'"),
        ({"city": "Rome", "town": "x"}, "arguments: Additional properties are not allowed ('town' was unexpected)"),
        (["Rome"], "arguments: ['Rome'] is not of type 'object'"),
    ],
)
def test_a_violation_is_told_with_its_path(arguments, problem):
    assert violation(arguments, WEATHER) == problem


def test_alternatives():
    either = properties(a={"anyOf": [{"type": "string"}, {"type": "null"}]})
    assert violation({"a": None}, either) is None and violation({"a": 3}, either)
    one = properties(a={"oneOf": [{"type": "integer"}, {"type": "number"}]})
    assert violation({"a": 1.5}, one) is None and violation({"a": 1}, one)
    all_of = properties(a={"allOf": [{"type": "string"}, {"pattern": "^a"}]})
    assert violation({"a": "ab"}, all_of) is None and violation({"a": "b"}, all_of)
    assert violation({"a": 1}, properties(a={"const": True}))
    assert violation({"a": None}, properties(a={"type": ["null"]})) is None


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        # Python (BFCL), Gemini, Java, SQL and the like
        ("dict", {}, []),
        ("float", 2.5, "2.5"),
        ("int", 2, 2.5),
        ("str", "a", 1),
        ("bool", True, 1),
        ("list", [1], 1),
        ("tuple", [1], "1"),
        ("OBJECT", {}, 1),
        ("ARRAY", [], {}),
        ("STRING", "a", 1),
        ("INTEGER", 1, "1"),
        ("NUMBER", 1.5, "1"),
        ("BOOLEAN", False, 0),
        ("HashMap", {}, 1),
        ("ArrayList", [], 1),
        ("double", 1.5, "1"),
        ("long", 1, 1.5),
        ("NoneType", None, 0),
        # xLAM, typing
        ("int, optional", 1, "1"),
        ("str, optional", "a", 1),
        ("List[int]", [1], ["a"]),
        ("List[List[float]]", [[1.5]], [1.5]),
        ("Dict[str, int]", {"a": 1}, 1),
        ("Tuple[int, str]", [1, "a"], 1),
        ("Optional[int]", None, "a"),
        ("Union[int, str]", "a", []),
        ("typing.List[str]", ["a"], [1]),
        ("int | None", None, "a"),
        ("Literal['a', 'b']", "a", "c"),
        ("string[]", ["a"], [1]),
        (["string", "null"], None, 1),
        (["str", "int"], 1, 1.5),
        # plain
        ("integer", 3.0, True),
        ("number", 1, True),
        ("null", None, 0),
    ],
)
def test_types_of_every_dialect(kind, right, wrong):
    assert violation({"a": right}, properties(a={"type": kind})) is None
    assert "arguments.a" in violation({"a": wrong}, properties(a={"type": kind}))


def test_any_type_is_any():
    for kind in ("any", "Any", "List[Any]", "Optional[any]"):
        assert violation({"a": []}, properties(a={"type": kind})) is None


@pytest.mark.parametrize("kind", ["strnig", "Callable", "Foo[int]", "list{int}", 7])
def test_a_type_that_nobody_knows_is_named(kind):
    for parameters in (properties(a={"type": kind}), {"a": {"type": kind}}, properties(a={"items": {"type": kind}})):
        with pytest.raises(ValueError, match=r"tool 'f': the type .* is unknown, .*; write one of object, array"):
            read_tool_schemas([{"name": "f", "parameters": parameters}])


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "dict", "properties": None},
        properties(a={"type": "integer", "enum": None, "items": None, "properties": None, "const": None}),
        properties(a={"type": "integer"}, b=None, c={"type": None, "description": None}),
        {**properties(a={"type": "integer"}), "required": None, "additionalProperties": None, "$defs": None},
        json.dumps(properties(a={"type": "integer"})),
    ],
)
def test_nulls_of_parquet_and_json_text(parameters):
    assert violation({"a": 1}, parameters) is None


def test_tools_in_all_their_wrappings():
    inner = {"name": "f", "parameters": properties(a={"type": "integer"})}
    wrapped = {"type": "function", "function": inner}
    for tools in (
        [inner], [wrapped], inner, wrapped, json.dumps([wrapped]), json.dumps(inner), [json.dumps(wrapped)],
        [{"name": "f", "input_schema": inner["parameters"]}], [{"name": "f", "inputSchema": inner["parameters"]}],
        [{"type": "function", "function": inner, "name": None}],
    ):  # fmt: skip
        [schema] = read_tool_schemas(tools).values()
        assert find_schema_violation({"a": 1}, schema) is None and find_schema_violation({"a": "1"}, schema)
    assert read_tool_schemas(()) == read_tool_schemas("[]") == read_tool_schemas(None) == {}
    for tools, problem in (
        ("weather", "are no list"),
        ([{"type": "function"}], "has no name"),
        ([3], "has no name"),
        ([{"name": "f", "parameters": [1]}], "tool 'f': its parameters are"),
        ([{"name": "f", "parameters": "{"}], "tool 'f': its parameters are '{'; expected a JSON schema"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_tool_schemas(tools)


def test_parameters_of_xlam_stand_without_an_object_around_them():
    parameters = {
        "type": {"description": "of the animal", "type": "str"},
        "age": {"type": "int, optional"},
        "tags": {"type": "List[str]", "default": ""},
    }
    assert violation({"type": "cat"}, parameters) is None
    assert violation({"type": "cat", "age": 3, "tags": ["a"]}, parameters) is None
    assert "'type' is a required property" in violation({}, parameters)
    assert "arguments.age" in violation({"type": "cat", "age": "old"}, parameters)


def test_references_nullable_and_required_in_its_place():
    tree = {
        **properties(root={"$ref": "#/$defs/node"}),
        "$defs": {"node": properties(value={"type": "int"}, left={"$ref": "#/$defs/node"})},
    }
    assert violation({"root": {"value": 1, "left": {"value": 2}}}, tree) is None
    assert violation({"root": {"value": 1, "left": {"value": "a"}}}, tree).startswith("arguments.root.left.value: ")
    old = {**properties(a={"$ref": "#/definitions/x"}), "definitions": {"x": {"type": "STRING"}}}
    assert violation({"a": 1}, old)
    assert violation({"a": None}, properties(a={"type": "STRING", "nullable": True})) is None
    assert violation({}, properties(a={"type": "string", "required": True}))
    assert violation({}, properties(a={"type": "string", "required": False})) is None
    assert (
        violation({"type": 3, "properties": "x"}, properties(type={"type": "integer"}, properties={"type": "str"}))
        is None
    )


@pytest.mark.parametrize(
    "parameters",
    [
        properties(a={"$ref": "#/$defs/nowhere"}),
        properties(a={"$ref": "https://example.com/schema.json"}),
        properties(a={"type": "string", "pattern": "("}),
        {"$ref": "#"},
        properties(a={"minimum": "low"}),
        properties(a={"enum": 3}),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_and_nothing_is_fetched(parameters, monkeypatch):
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **options: fetched.append(arguments))
    with pytest.raises(ValueError, match="the schema of a tool"):
        violation({"a": "x"}, parameters)
    assert not fetched

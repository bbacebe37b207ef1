"""Issue 16, tools: schemas come from signatures, and whatever goes wrong in a call is an answer that helps."""

from __future__ import annotations

import asyncio
import enum
import time
from typing import Annotated, Literal

import pydantic
import pytest

import aurify
from aurify import registry
from aurify.errors import UserError
from aurify.tools.calculator import calculator
from aurify.tools.tool import make_tool
from aurify.tools.toolbox import Toolbox, build_tools


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(pydantic.BaseModel):
    x: int
    y: float = 0.0


def draw(
    at: Point,
    colour: Colour = Colour.RED,
    how: Annotated[Literal["dot", "cross"], "shape of the mark"] = "dot",
    size: int | None = None,
    *,
    labels: list[str] = [],  # noqa: B006
) -> str:
    """Draw a mark.

    It is drawn at once.

    Args:
        at: where it goes,
            in pixels
        size (int): of the mark
    """
    return f"{how} {colour.value} {at.x} {at.y} {size} {labels}"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def answers(*calls, tools=(add, draw), seconds=5.0):
    box = Toolbox([make_tool(tool) for tool in tools], seconds)

    async def all_of() -> list[str]:
        return [await box.call(name, arguments) for name, arguments in calls]

    return asyncio.run(all_of()), box.counts


def test_the_schema_follows_from_signature_and_docstring():
    function = make_tool(draw).schema["function"]
    assert (function["name"], function["description"]) == ("draw", "Draw a mark.")
    parameters = function["parameters"]
    assert parameters["type"] == "object" and parameters["required"] == ["at"]
    assert parameters["properties"] == {
        "at": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.0}},
            "required": ["x"],
            "description": "where it goes, in pixels",
        },
        "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "how": {"type": "string", "enum": ["dot", "cross"], "default": "dot", "description": "shape of the mark"},
        "size": {"type": "integer", "description": "of the mark"},
        "labels": {"type": "array", "items": {"type": "string"}, "default": []},
    }


def test_arguments_arrive_as_the_types_that_are_annotated():
    texts, counts = answers(
        ("draw", {"at": {"x": "3"}, "colour": "blue", "labels": ["a"]}), ("add", {"a": 1, "b": "2"})
    )
    assert texts == ["dot blue 3 0.0 None ['a']", "3"] and counts["calls_failed"] == 0


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("ad", {"a": 1, "b": 2}, "there is no tool 'ad'; the tools are: add, draw"),
        ("add", {"a": 1}, "'b' is missing. Expected: add(a: integer, b: integer)"),
        ("add", {"a": 1, "b": "two"}, "'b': Input should be a valid integer, not \"two\""),
        ("add", {"a": 1, "b": 2, "c": 3}, "there is no argument 'c'"),
        ("draw", {"at": {"y": 1}}, "'at.x' is missing. Expected: draw(at: object"),
        ("draw", {"at": {"x": 1}, "how": "line"}, "'dot' or 'cross'"),
    ],
)
def test_a_wrong_call_is_answered_with_what_would_be_right(name, arguments, told):
    [text], counts = answers((name, arguments))
    assert text.startswith("Error: ") and told in text
    assert counts["calls_failed"] == 1


def test_exceptions_and_endless_calls_are_answers():
    def fail() -> None:
        raise RuntimeError("no more paper")

    def sleep() -> None:
        time.sleep(30)

    async def wait() -> None:
        await asyncio.sleep(30)

    async def fine() -> dict[str, int]:
        return {"a": 1}

    begun = time.monotonic()
    texts, counts = answers(
        *[(name, {}) for name in ("fail", "sleep", "wait", "fine")], tools=(fail, sleep, wait, fine), seconds=0.2
    )
    assert "RuntimeError: no more paper" in texts[0]
    assert all("took longer than 0.2 seconds" in text for text in texts[1:3]) and texts[3] == '{"a": 1}'
    assert counts["calls_time_limit"] == 2 and time.monotonic() - begun < 10


def test_an_error_of_pydantic_inside_a_tool_is_the_tools_own():
    def inner() -> None:
        Point.model_validate({"x": "no"})

    [text], counts = answers(("inner", {}), tools=(inner,))
    assert "ValidationError" in text and counts["calls_raised"] == 1


@pytest.mark.parametrize("function", [lambda *numbers: 0, lambda **named: 0, lambda a, /: 0])
def test_parameters_without_a_name_of_their_own_are_refused(function):
    function.__name__ = "lambda_tool"
    with pytest.raises(UserError, match="each parameter needs one"):
        make_tool(function)


def test_a_type_that_has_no_schema_is_refused():
    def strange(a: object, b: type[int] | asyncio.Event) -> None:
        pass

    with pytest.raises(UserError, match="have no JSON schema"):
        make_tool(strange)


def test_tools_by_name_and_with_state():
    @aurify.tool
    class counter:
        """Counts."""

        def __init__(self, start: int = 0) -> None:
            self.value = start

        def call(self, by: int = 1) -> int:
            """Count on."""
            self.value += by
            return self.value

    try:
        open_tools = build_tools(["calculator", {"name": "counter", "start": 5}])
        first, second = Toolbox(open_tools()), Toolbox(open_tools())

        async def count(box: Toolbox) -> str:
            return await box.call("counter", {"by": 2})

        async def counted() -> list[str]:
            return [await count(first), await count(first), await count(second)]

        assert asyncio.run(counted()) == ["7", "9", "7"]  # each trajectory has its own
        assert [schema["function"]["name"] for schema in first.schemas] == ["calculator", "counter"]
        with pytest.raises(UserError, match="has no option 'begin'"):
            build_tools([{"name": "counter", "begin": 1}])
        with pytest.raises(UserError, match="there twice"):
            build_tools(["calculator", "calculator"])
        with pytest.raises(UserError, match="did you mean 'calculator'"):
            build_tools(["calculater"])
    finally:
        registry.ENTRIES["tool"].pop("counter", None)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * (3 + 4.5)", "90"),
        ("1,234 \u00d7 5", "6170"),
        ("2^10", "1024"),
        ("-7 // 2", "-4"),
        ("123456789123456789 * 987654321", "121932631234567900112635269"),
        ("0.1 + 0.2", "0.3"),
        ("sqrt(2) ** 2", "2"),
        ("max(3, 4) + abs(-2)", "6"),
        ("2**-1", "0.5"),
    ],
)
def test_the_calculator_calculates(expression, result):
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "2**99999999",
        "9**9**9**9",
        "__import__('os')",
        "(1).real",
        "'a' * 9",
        "1/0",
        "sqrt(-1)",
        "1 +",
        "",
        "[1]",
        "1" * 2000,
    ],
)
def test_the_calculator_refuses_and_says_why(expression):
    [text], counts = answers(("calculator", {"expression": expression}), tools=(calculator,))
    assert text.startswith("Error: calculator: ") and counts["calls_failed"] == 1 and len(text) < 500

"""A calculator for models: exact whole numbers, the usual operators and a few functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from aurify.tools.tool import CallError

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("sqrt", "exp", "log", "log10", "sin", "cos", "tan", "floor", "ceil", "gcd")
} | {"abs": abs, "round": round, "min": min, "max": max}
CONSTANTS = {"pi": math.pi, "e": math.e}
SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "^": "**", "\u00b2": "**2", "\u00b3": "**3"}
)
MAX_CHARS = 1000
MAX_BITS = 10_000  # of a power: a larger one would take the machine's memory


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression, such as 12 * (3 + 4.5)."""
    text = expression.translate(SIGNS).replace(",", "") if "(" not in expression else expression.translate(SIGNS)
    if len(text) > MAX_CHARS:
        raise CallError(f"the expression has {len(text)} characters; at most {MAX_CHARS} are allowed")
    try:
        value = calculate_node(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        raise CallError(f"{expression!r} is no arithmetic expression; write one such as 12 * (3 + 4)") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise CallError(f"{expression!r} has no result: {error}") from None
    return write_calculated(value)


def calculate_node(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(op=ast.Pow()):
            return calculate_power(calculate_node(node.left), calculate_node(node.right))
        case ast.BinOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](calculate_node(node.left), calculate_node(node.right))
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](calculate_node(node.operand))
        case ast.Name() if node.id in CONSTANTS:
            return CONSTANTS[node.id]
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS and not node.keywords:
            return FUNCTIONS[name](*map(calculate_node, node.args))
    raise CallError(
        f"{ast.unparse(node)!r} is not allowed; use numbers, + - * / // % **, parentheses and {', '.join(FUNCTIONS)}"
    )


def calculate_power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        raise CallError(f"{base}**{exponent} is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("the root of a negative number")
    return result


def write_calculated(value: Any) -> str:
    """Whole results without ".0"; others with the digits that a float keeps, without its noise: 0.1 + 0.2 is 0.3."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CallError(f"the result is {value}")
        if value == int(value) and abs(value) < 2**53:
            return str(int(value))
        return f"{value:.12g}"
    return str(value)

"""The tests that a text of Python holds: what pytest and unittest would collect, and what runs at its top. Standard
library alone: it is used on this machine and inside the sandbox."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from aurify.sandbox.checks import (
    FUNCTIONS,
    SCOPES,
    find_checking_functions,
    is_test_skip,
    leads_to_test_check,
    statement_blocks,
    statement_never_runs,
    write_out_empty_test_lists,
)

FENCED = re.compile(r"\s*```[ \t]*\w*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
Function = ast.FunctionDef | ast.AsyncFunctionDef
PROGRAM_MODULES = (  # names under which tests import the program
    *("solution", "main", "module", "my_module", "my_solution", "program", "script", "submission", "your_code"),
    *("your_module", "your_solution"),
)


def is_test_main_guard(statement: ast.AST) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def list_test_definitions(block: Sequence[ast.stmt], kinds: tuple[type[ast.stmt], ...]) -> Iterator[Any]:
    """Functions or classes that running the block defines."""
    for statement in block:
        if isinstance(statement, kinds):
            yield statement
        elif not isinstance(statement, SCOPES):
            for inner in statement_blocks(statement):
                yield from list_test_definitions(inner, kinds)


def list_test_functions(
    block: Sequence[ast.stmt], prefix: str = "", alone: str = ""
) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """What pytest and unittest would collect, by name: functions `test*`, and such methods of classes that are called
    `Test*` or derive from a TestCase. alone: the name of a function that is a test where there is no other."""
    functions = {node.name: node for node in list_test_definitions(block, FUNCTIONS)}
    tests = [name for name in functions if name.startswith("test")] or [name for name in functions if name == alone]
    found = {prefix + name: functions[name] for name in tests}
    classes = {
        node.name: node for node in list_test_definitions(block, (ast.ClassDef,)) if not statement_never_runs(node)
    }
    for name, node in classes.items():
        lineage, is_case = [node], False
        for parent in lineage:
            for base in parent.bases:
                last = ast.unparse(base).rpartition(".")[2]
                is_case = is_case or "TestCase" in last
                if last in classes and classes[last] not in lineage:
                    lineage.append(classes[last])
        members = [member for parent in reversed(lineage) for member in parent.body]
        has_init = any(method.name == "__init__" for method in list_test_definitions(members, FUNCTIONS))
        if is_case or (name.startswith("Test") and not has_init):
            found |= list_test_functions(members, f"{prefix}{name}.", "runTest" if is_case else "")
    return {name: node for name, node in found.items() if not statement_never_runs(node)}


def is_doctest(text: str) -> bool:
    """Whether an example in it says what it should print."""
    return re.search(r"^[ \t]*>>> .*\n(?:[ \t]*\.\.\..*\n)*[ \t]*(?!>>>|\.\.\.)\S", text, re.MULTILINE) is not None


def strip_test_fence(text: str) -> str:
    """Without a fence around all of it, and without the indentation that all lines have."""
    fenced = FENCED.fullmatch(text)
    return textwrap.dedent(fenced[1] if fenced else text)


def parse_test_text(text: str) -> ast.Module:
    """The tree of a text of tests, without a fence around it and indentation. A text of doctest examples alone becomes
    a docstring. SyntaxError: it is neither."""
    text = strip_test_fence(text)
    try:
        tree: ast.Module = ImportsOfProgram().visit(ast.parse(text))
        return tree
    except SyntaxError:
        if not is_doctest(text):
            raise
        return ast.parse(repr(text))


class ImportsOfProgram(ast.NodeTransformer):
    """`from .solution import f` and `from src.solution import f`: from the program, wherever the tests think it is."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        folder, _, last = (node.module or "").rpartition(".")
        if node.level or (folder and last in PROGRAM_MODULES and folder.split(".")[0] not in sys.stdlib_module_names):
            node.level, node.module = 0, "solution"
        return node


class ParsedText:
    """One text of tests, and what in it checks something. checking: see `find_checking_functions`, of all texts."""

    def __init__(self, tree: ast.Module, checking: set[str]) -> None:
        self.tree = tree
        collected = {} if any(map(is_test_skip, tree.body)) else list_test_functions(tree.body)
        self.functions = {name: node for name, node in collected.items() if node.name in checking}
        top = [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        self.statements = [node for node in top if leads_to_test_check([node], checking)]
        self.has_candidate = "check" in checking and takes_candidate(tree) and not block_mentions("check", top)
        if self.functions or self.has_candidate or not all(map(is_test_main_guard, self.statements)):
            tree.body = [node for node in tree.body if not is_test_main_guard(node)]  # the tests run without it
            self.statements = [node for node in self.statements if not is_test_main_guard(node)]
        values = [node.value for node in tree.body if isinstance(node, ast.Expr)]
        strings = [value.value for value in values if isinstance(value, ast.Constant)]
        if not (self.functions or self.statements or self.has_candidate):  # then examples of functions are tests
            strings += [
                ast.get_docstring(node) for node in list_test_definitions(tree.body, (*FUNCTIONS, ast.ClassDef))
            ]
        self.doctests = [text for text in strings if isinstance(text, str) and is_doctest(text)]

    def count(self) -> int:
        """How many tests it holds at least."""
        return len(self.functions) + len(self.statements) + self.has_candidate + len(self.doctests)


def takes_candidate(tree: ast.Module) -> bool:
    """Whether there is a function `check(candidate)`."""
    found = [node for node in list_test_definitions(tree.body, FUNCTIONS) if node.name == "check"]
    return any(node.args.posonlyargs or node.args.args for node in found)


def block_mentions(name: str, block: Sequence[ast.stmt]) -> bool:
    return any(getattr(node, "id", "") == name for statement in block for node in ast.walk(statement))


def parse_test_texts(texts: Sequence[str], setup: str) -> list[ParsedText]:
    """The texts of a task. SyntaxError, ValueError, RecursionError, MemoryError: one of them does not parse."""
    trees = [parse_test_text(text) for text in texts]
    for tree in trees:
        write_out_empty_test_lists(tree)
    checking = find_checking_functions([ast.parse(setup), *trees])
    return [ParsedText(tree, checking) for tree in trees]


def list_tested_imports(text: str) -> set[str]:
    """The names that tests import from the program's module, or look up in it."""
    found: set[str] = set()
    try:
        tree = parse_test_text(text)
    except SyntaxError:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in PROGRAM_MODULES:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PROGRAM_MODULES:
            found.add(node.attr)
    return found


def list_test_imports(tree: ast.Module) -> set[str]:
    """The modules that a text imports for certain: at its top, outside of any `try` or `if`."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}

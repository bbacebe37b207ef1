"""What in a text of tests checks something, read from its syntax tree. Standard library alone: it runs on this machine,
to find tests that check nothing before a run starts, and inside the sandbox, to count the checks that have run.

A check is an `assert`, or a call of something called assert, raises or the like. What only happens on failure (`raise`
or `fail()` below an `if` or a `try`) is one check together with the `if` or `try` around it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

MARK = "__aurify_checked__"  # called before each check
OPEN, HELD = "__aurify_open__", "__aurify_held__"  # called before and after a check whose failure would be swallowed
ASSERTING = re.compile(r"assert|raises|warns|deprecated_call", re.IGNORECASE)
EXITS = {"exit", "_exit", "quit"}
BRANCHES = (ast.If, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def statement_blocks(statement: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement."""
    for _, value in ast.iter_fields(statement):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, ast.ExceptHandler | ast.match_case):
                    yield entry.body


def statement_expressions(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement that run with it: not its blocks, and no function or class that it defines."""
    waiting = [node for node in ast.iter_child_nodes(statement) if not isinstance(node, ast.stmt | ast.ExceptHandler)]
    if isinstance(statement, SCOPES):
        waiting = list(getattr(statement, "decorator_list", ()))
    for node in waiting:
        if isinstance(node, ast.match_case):
            continue
        yield node
        if not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def read_called_name(node: ast.AST) -> str:
    """The last part of the name that a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def is_test_check(statement: ast.stmt) -> bool:
    if isinstance(statement, SCOPES):
        return False
    if isinstance(statement, ast.Assert):  # `assert (a == b, "text")` is always true
        return not isinstance(statement.test, ast.Constant | ast.Tuple)
    return any(ASSERTING.search(read_called_name(node)) for node in statement_expressions(statement))


def statement_always_fails(statement: ast.stmt) -> bool:
    """`raise X`, `assert False`, `fail()`, `exit(1)`"""
    if isinstance(statement, ast.Raise):
        return statement.exc is not None
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and not statement.test.value
    calls = [node for node in statement_expressions(statement) if isinstance(node, ast.Call)]
    return any(
        read_called_name(call) == "fail" or (read_called_name(call) in EXITS and has_exit_code(call)) for call in calls
    )


def has_exit_code(call: ast.Call) -> bool:
    return any(not isinstance(code, ast.Constant) or bool(code.value) for code in call.args)


def statement_fails_inside(statement: ast.stmt) -> bool:
    """Whether it decides over something that only happens on failure. A loop decides only with its `else`."""
    if not isinstance(statement, (*BRANCHES, *LOOPS)):
        return False
    inner = [statement.orelse] if isinstance(statement, LOOPS) else statement_blocks(statement)
    return any(statement_always_fails(child) or statement_fails_inside(child) for block in inner for child in block)


def block_fails_later(block: Sequence[ast.AST]) -> bool:
    """Whether it is left early, or else fails."""
    return any(isinstance(statement, ast.stmt) and statement_always_fails(statement) for statement in block[1:])


def mark_test_checks(block: list[ast.stmt], *, fails: bool = False, swallowed: bool = False) -> None:
    """Puts a call of MARK before each check of a block and of the blocks in it. fails: see `block_fails_later`.
    swallowed: an error in the block does not get out."""
    for index in reversed(range(len(block))):
        statement = block[index]
        for inner in statement_blocks(statement):
            inner_fails = isinstance(statement, (*FUNCTIONS, *LOOPS)) and block_fails_later(inner)
            inherits = swallowed and not isinstance(statement, SCOPES)
            mark_test_checks(inner, fails=inner_fails, swallowed=inherits or swallows_failed_assert(statement, inner))
        if swallowed and isinstance(statement, ast.Assert | ast.Raise) and is_failed_assert(statement):
            block[index : index + 1] = [build_mark_call(OPEN, statement), statement, build_mark_call(HELD, statement)]
        if is_test_check(statement) or statement_fails_inside(statement) or (fails and index == 0):
            block.insert(index, build_mark_call(MARK, statement))


def build_mark_call(name: str, beside: ast.stmt) -> ast.stmt:
    call = ast.Expr(ast.Call(ast.Name(name, ast.Load()), [], []))
    return ast.fix_missing_locations(ast.copy_location(call, beside))


def is_failed_assert(statement: ast.Assert | ast.Raise) -> bool:
    """Whether the error that it raises is an AssertionError."""
    return isinstance(statement, ast.Assert) or "AssertionError" in ast.unparse(statement)


def swallows_failed_assert(statement: ast.AST, block: list[ast.stmt]) -> bool:
    """Whether a failed assert in a block of the statement would pass unnoticed: under `suppress`, or in a `try`."""
    if isinstance(statement, ast.With | ast.AsyncWith):
        return any(read_called_name(item.context_expr) == "suppress" for item in statement.items)
    if not isinstance(statement, ast.Try) or block is not statement.body:
        return False
    caught = "AssertionError|Exception"
    return any(handler.type is None or re.search(caught, ast.unparse(handler.type)) for handler in statement.handlers)


def is_test_skip(statement: ast.AST) -> bool:
    """`pytest.skip()` or `self.skipTest()`: what comes after it does not run."""
    return isinstance(statement, ast.Expr) and read_called_name(statement.value) in ("skip", "skipTest")


def write_out_empty_test_lists(tree: ast.Module) -> None:
    """Writes `[]` where a loop or `parametrize` names a list that is always empty."""
    nodes = list(ast.walk(tree))
    for statement in tree.body:
        if not (isinstance(statement, ast.Assign) and is_empty_list_node(statement.value)):
            continue
        name = ast.unparse(statement.targets[0])
        loops = [node for node in nodes if isinstance(node, ast.For) and ast.unparse(node.iter) == name]
        marks = [node for node in nodes if isinstance(node, ast.Call) and read_called_name(node) == "parametrize"]
        calls = [call for call in marks if name in map(ast.unparse, call.args[1:2])]
        mentions = sum(getattr(node, "id", "") == name for node in nodes)
        if mentions == 1 + len(loops) + len(calls):  # nothing else could fill it
            for loop in loops:
                loop.iter = statement.value
            for call in calls:
                call.args[1] = statement.value


def statement_never_runs(statement: ast.AST) -> bool:
    """`if False:` and loops over nothing, and functions and classes that are skipped or have no parameters."""
    if isinstance(statement, ast.If):
        return isinstance(statement.test, ast.Constant) and not statement.test.value and not statement.orelse
    if isinstance(statement, ast.For):
        return is_empty_list_node(statement.iter)
    for decorator in getattr(statement, "decorator_list", ()):
        name, arguments = ast.unparse(decorator).split("(")[0], getattr(decorator, "args", [])
        skipped = name.endswith(("mark.skip", "mark.xfail", "unittest.skip", "expectedFailure"))
        if name.endswith(("skipif", "skipIf", "xfail")) and arguments:
            skipped = isinstance(arguments[0], ast.Constant) and bool(arguments[0].value)
        if skipped or (name.endswith("parametrize") and any(map(is_empty_list_node, arguments[1:2]))):
            return True
    return False


def is_empty_list_node(node: ast.AST) -> bool:
    return isinstance(node, ast.List | ast.Tuple) and not node.elts


def leads_to_test_check(block: Sequence[ast.AST], checking: set[str]) -> bool:
    """Whether running the block may run a check. checking: names of functions that check something."""
    for statement in block:
        if is_test_skip(statement):
            return False
        if statement_never_runs(statement):
            continue
        if isinstance(statement, ast.stmt) and (is_test_check(statement) or statement_fails_inside(statement)):
            return True
        for node in statement_expressions(statement):
            if getattr(node, "id", getattr(node, "attr", "")) in checking:
                return True
        for inner in () if isinstance(statement, FUNCTIONS) else statement_blocks(statement):
            if leads_to_test_check(inner, checking) or (isinstance(statement, LOOPS) and block_fails_later(inner)):
                return True
    return False


def find_checking_functions(trees: Sequence[ast.AST]) -> set[str]:
    """The names of functions and methods that check something themselves, or use such a function."""
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    found: set[str] = set()
    while True:
        left = [node for node in functions if node.name not in found]
        more = {node.name for node in left if block_fails_later(node.body) or leads_to_test_check(node.body, found)}
        if not more:
            return found
        found |= more

"""What a text of tests would run and check, read from its syntax tree. Standard library alone: it runs on this machine,
to find tests that check nothing before a run starts, and inside the sandbox, to count the checks that have run.

A check is an `assert`, or a call of something called assert, raises or the like. What only happens on failure (`raise`
or `fail()` below an `if` or a `try`) is one check together with the `if` or `try` around it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

MARK = "__aurify_checked__"  # called before each check
ASSERTING = re.compile(r"assert|raises|warns|deprecated_call", re.IGNORECASE)
PROGRAM_MODULES = (  # names under which tests import the program
    *("solution", "main", "module", "my_module", "my_solution", "program", "script", "submission", "your_code"),
    *("your_module", "your_solution"),
)
EXITS = {"exit", "_exit", "quit"}
BRANCHES = (ast.If, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def blocks(statement: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement."""
    for _, value in ast.iter_fields(statement):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, ast.ExceptHandler | ast.match_case):
                    yield entry.body


def expressions(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement that run with it: not its blocks, and no function or class that it defines."""
    waiting = [node for node in ast.iter_child_nodes(statement) if not isinstance(node, ast.stmt | ast.ExceptHandler)]
    if isinstance(statement, SCOPES):
        waiting = list(statement.decorator_list)
    for node in waiting:
        if isinstance(node, ast.match_case):
            continue
        yield node
        if not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def called_name(node: ast.AST) -> str:
    """The last part of the name that a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def is_check(statement: ast.stmt) -> bool:
    if isinstance(statement, SCOPES):
        return False
    if isinstance(statement, ast.Assert):
        return not always_fails(statement)
    return any(ASSERTING.search(called_name(node)) for node in expressions(statement))


def always_fails(statement: ast.stmt) -> bool:
    """`raise X`, `assert False`, `fail()`, `exit(1)`"""
    if isinstance(statement, ast.Raise):
        return statement.exc is not None
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and not statement.test.value
    calls = [node for node in expressions(statement) if isinstance(node, ast.Call)]
    return any(called_name(call) == "fail" or (called_name(call) in EXITS and has_exit_code(call)) for call in calls)


def has_exit_code(call: ast.Call) -> bool:
    return any(not isinstance(code, ast.Constant) or bool(code.value) for code in call.args)


def fails_inside(statement: ast.stmt) -> bool:
    """Whether it decides over something that only happens on failure. A loop decides only with its `else`."""
    if not isinstance(statement, (*BRANCHES, *LOOPS)):
        return False
    inner = [statement.orelse] if isinstance(statement, LOOPS) else blocks(statement)
    return any(always_fails(child) or fails_inside(child) for block in inner for child in block)


def fails_later(block: Sequence[ast.AST]) -> bool:
    """Whether it is left early, or else fails."""
    return any(isinstance(statement, ast.stmt) and always_fails(statement) for statement in block[1:])


def mark(block: list[ast.stmt], *, fails: bool = False) -> None:
    """Puts a call of MARK before each check of a block and of the blocks in it. fails: see `fails_later`."""
    for index in reversed(range(len(block))):
        statement = block[index]
        for inner in blocks(statement):
            mark(inner, fails=isinstance(statement, (*FUNCTIONS, *LOOPS)) and fails_later(inner))
        if is_check(statement) or fails_inside(statement) or (fails and index == 0):
            call = ast.Expr(ast.Call(ast.Name(MARK, ast.Load()), [], []))
            block.insert(index, ast.fix_missing_locations(ast.copy_location(call, statement)))


def leads_to_check(block: Sequence[ast.AST], checking: set[str]) -> bool:
    """Whether running the block may run a check. checking: names of functions that check something."""
    for statement in block:
        if isinstance(statement, ast.stmt) and (is_check(statement) or fails_inside(statement)):
            return True
        for node in expressions(statement):
            if getattr(node, "id", getattr(node, "attr", "")) in checking:
                return True
        for inner in () if isinstance(statement, FUNCTIONS) else blocks(statement):
            if leads_to_check(inner, checking) or (isinstance(statement, LOOPS) and fails_later(inner)):
                return True
    return False


def checking_functions(trees: Sequence[ast.AST]) -> set[str]:
    """The names of functions and methods that check something themselves, or use such a function."""
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    found: set[str] = set()
    while True:
        left = [node for node in functions if node.name not in found]
        more = {node.name for node in left if fails_later(node.body) or leads_to_check(node.body, found)}
        if not more:
            return found
        found |= more


def is_main_guard(statement: ast.AST) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def definitions(block: Sequence[ast.stmt], kinds: tuple[type[ast.stmt], ...]) -> Iterator[ast.stmt]:
    """Functions or classes that running the block defines."""
    for statement in block:
        if isinstance(statement, kinds):
            yield statement
        elif not isinstance(statement, SCOPES):
            for inner in blocks(statement):
                yield from definitions(inner, kinds)


def collected_functions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """What pytest and unittest would collect, by name: functions `test*`, and such methods of classes that are called
    `Test*` or derive from a TestCase."""
    found = {node.name: node for node in definitions(tree.body, FUNCTIONS) if node.name.startswith("test")}
    classes = {node.name: node for node in definitions(tree.body, (ast.ClassDef,))}
    for name, node in classes.items():
        lineage, is_case = [node], False
        for parent in lineage:
            for base in parent.bases:
                last = ast.unparse(base).rpartition(".")[2]
                is_case = is_case or "TestCase" in last
                if last in classes and classes[last] not in lineage:
                    lineage.append(classes[last])
        methods = [method for parent in reversed(lineage) for method in definitions(parent.body, FUNCTIONS)]
        if is_case or (name.startswith("Test") and "__init__" not in {method.name for method in methods}):
            found |= {f"{name}.{method.name}": method for method in methods if method.name.startswith("test")}
    return found


def is_doctest(text: str) -> bool:
    """Whether an example in it says what it should print."""
    return re.search(r"^[ \t]*>>> .*\n(?:[ \t]*\.\.\..*\n)*[ \t]*(?!>>>|\.\.\.)\S", text, re.MULTILINE) is not None


def parse_tests(text: str) -> ast.Module:
    """The tree of a text of tests. A text of doctest examples alone becomes a docstring. SyntaxError: it is neither."""
    try:
        return ast.parse(text)
    except SyntaxError:
        if not is_doctest(text):
            raise
        return ast.parse(repr(text))


class ParsedText:
    """One text of tests, and what in it checks something. checking: see `checking_functions`, of all texts."""

    def __init__(self, tree: ast.Module, checking: set[str]) -> None:
        self.tree = tree
        self.functions = {name: node for name, node in collected_functions(tree).items() if node.name in checking}
        statements = [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        self.statements = [node for node in statements if leads_to_check([node], checking)]
        self.has_candidate = "check" in checking and self.defines_check() and not self.uses("check", statements)
        if self.functions or self.has_candidate or not all(map(is_main_guard, self.statements)):
            tree.body = [node for node in tree.body if not is_main_guard(node)]  # the tests run without it
            self.statements = [node for node in self.statements if not is_main_guard(node)]
        strings = [node.value.value for node in tree.body if is_constant(node)]
        if not self.count():  # examples of functions are tests where nothing else is
            strings += [ast.get_docstring(node) for node in definitions(tree.body, (*FUNCTIONS, ast.ClassDef))]
        self.doctests = [text for text in strings if isinstance(text, str) and is_doctest(text)]

    def count(self) -> int:
        """How many tests it holds at least."""
        return len(self.functions) + len(self.statements) + self.has_candidate + len(getattr(self, "doctests", ()))

    def defines_check(self) -> bool:
        found = [node for node in definitions(self.tree.body, FUNCTIONS) if node.name == "check"]
        return any(node.args.posonlyargs or node.args.args for node in found)

    def uses(self, name: str, block: Sequence[ast.stmt]) -> bool:
        return any(getattr(node, "id", "") == name for statement in block for node in ast.walk(statement))


def is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def parse_all(texts: Sequence[str], setup: str) -> list[ParsedText]:
    """The texts of a task. SyntaxError, ValueError, RecursionError, MemoryError: one of them does not parse."""
    trees = [parse_tests(text) for text in texts]
    checking = checking_functions([ast.parse(setup), *trees])
    return [ParsedText(tree, checking) for tree in trees]


def imported_from_program(text: str) -> set[str]:
    """The names that tests import from the program's module, or look up in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in PROGRAM_MODULES:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PROGRAM_MODULES:
            found.add(node.attr)
    return found


def imported_modules(tree: ast.Module) -> set[str]:
    """The modules that a text imports for certain: at its top, outside of any `try` or `if`."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}

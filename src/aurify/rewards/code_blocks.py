"""Finds the program in an answer, which may show several blocks: parts of the program, usage, output, commands."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

OPENING = re.compile(r"^(?P<before>[^`~\n]*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
BESIDE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+|<[^<>\n]*>[ \t]*)*")  # list items, tags such as <answer>
LANGUAGE = re.compile(r"[\s{.]*([^\s{}:,;]*)")
PYTHON = re.compile(r"(?:python|py)[\d.]*", re.IGNORECASE)
READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0\b|\bfileinput\b|/dev/stdin")
MAX_BLOCKS = 100  # the last ones; an answer may consist of blocks
MAX_CLOSINGS = 6  # how many closing fences are tried where a block does not parse
UNPARSED = (SyntaxError, ValueError, RecursionError, MemoryError)


def program_in(text: str, needed: Collection[str] = (), *, reads_input: bool = False) -> str:
    """The program in an answer; the whole text where nothing is fenced; nothing where all blocks are of other
    languages. needed: names that the tests use. reads_input: whether the program reads standard input."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = list(find_code_blocks(text.split("\n")))
    if not blocks:
        return textwrap.dedent(text).strip("\n") + "\n" if "\n" in text else text
    python = [block for block in blocks if block.language == "python" or (block.language == "" and not block.is_output)]
    parsed = [block for block in python if block.tree is not None][-MAX_BLOCKS:]
    if not parsed:
        return python[-1].code if python else ""
    index = choose_code_script(parsed) if reads_input else choose_code_definition(parsed, set(needed))
    return "\n".join(block.code for block in with_earlier_blocks(parsed, index))


@dataclass(frozen=True)
class Block:
    code: str
    language: str  # "python", "" or another one
    tree: ast.Module | None  # None: it does not parse
    defined: frozenset[str] = frozenset()  # names at its top level
    missing: frozenset[str] = frozenset()  # names that it uses and does not define

    @property
    def is_output(self) -> bool:
        """Whether it does nothing: values, say, that a program has printed."""
        return self.tree is not None and not any(map(block_does_something, self.tree.body))

    @property
    def acts(self) -> bool:
        """Whether it does more than to define."""
        definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign
        body = self.tree.body if self.tree else []
        return any(not isinstance(node, definitions) and block_does_something(node) for node in body)

    @property
    def defines_functions(self) -> bool:
        body = self.tree.body if self.tree else []
        return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in body)

    @property
    def is_test(self) -> bool:
        return bool({"pytest", "unittest"} & self.defined) or any(n.startswith("test") for n in self.defined)


def block_does_something(node: ast.stmt) -> bool:
    plain = ast.Constant | ast.Name | ast.List | ast.Tuple | ast.Dict | ast.Set | ast.UnaryOp
    return not (isinstance(node, ast.Expr) and isinstance(node.value, plain))


# reading blocks


def find_code_blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Blocks between fences, as in CommonMark. A block that is not closed goes on to the end."""
    number = 0
    while number < len(lines):
        opening = OPENING.match(lines[number])
        number += 1
        if opening is None:
            continue
        info, before = str(LANGUAGE.match(opening["info"])[1]), opening["before"]  # type: ignore[index]
        language = "python" if PYTHON.fullmatch(info) else info.lower()
        if language != "python" and not BESIDE.fullmatch(before):
            continue
        closings = find_fence_closings(lines, number, opening["fence"], len(before))
        indent = len(before) if before.isspace() else 0
        tried = [(end, make_code_block(lines[number:end], indent, language)) for end in closings[:1]]
        if language in ("python", "") and tried[0][1].tree is None:
            tried += [(end, make_code_block(lines[number:end], indent, language)) for end in closings[1:]]
        end, block = next((pair for pair in tried if pair[1].tree is not None), tried[0])
        yield block
        number = end + 1


def find_fence_closings(lines: Sequence[str], start: int, fence: str, width: int) -> list[int]:
    """The first lines that may close a block; the end of the text if there are none."""
    pattern = re.compile(rf"[ \t]{{0,{width}}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*(?:</[^<>]*>)?[ \t]*")
    found = (number for number in range(start, len(lines)) if pattern.fullmatch(lines[number]))
    return list(islice(found, MAX_CLOSINGS)) or [len(lines)]


def make_code_block(lines: Sequence[str], indent: int, language: str) -> Block:
    outdented = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines]
    code = textwrap.dedent("\n".join(outdented)) + "\n"
    if language not in ("python", ""):
        return Block(code, language, None)
    try:
        return Block(code, language, ast.parse(code), *find_code_names(code))
    except UNPARSED:
        return Block(code, language, None)


def find_code_names(code: str) -> tuple[frozenset[str], frozenset[str]]:
    """(names that the code defines at its top level, names that it uses and neither it nor Python defines)"""
    top = symtable.symtable(code, "program", "exec")
    symbols = top.get_symbols()
    defined = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    used = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    tables = list(top.get_children())
    for table in tables:
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return frozenset(defined), frozenset(used - defined - set(dir(builtins)))


# choosing


def choose_code_definition(blocks: Sequence[Block], needed: set[str]) -> int:
    """The last block that defines what the tests use; else the last that defines a function or does anything."""
    wanted = (
        lambda block: bool(block.defined & needed),
        lambda block: block.defines_functions and not block.is_test,
        lambda block: not block.is_output,
    )
    for wants in wanted:
        for index in reversed(range(len(blocks))):
            if wants(blocks[index]):
                return index
    return len(blocks) - 1


def choose_code_script(blocks: Sequence[Block]) -> int:
    """The last block that reads the input and does something; else the last that does so with earlier blocks."""

    def reads(parts: Sequence[Block]) -> bool:
        return any(READS.search(part.code) for part in parts)

    wanted = (
        lambda index: blocks[index].acts and reads([blocks[index]]),
        lambda index: blocks[index].acts and reads(with_earlier_blocks(blocks, index)),
        lambda index: blocks[index].acts,
    )
    for wants in wanted:
        for index in reversed(range(len(blocks))):
            if wants(index):
                return index
    return len(blocks) - 1


def with_earlier_blocks(blocks: Sequence[Block], index: int) -> list[Block]:
    """A block after those earlier ones that define what it lacks."""
    found, missing = [blocks[index]], set(blocks[index].missing)
    for block in reversed(blocks[:index]):
        if block.defined & missing:
            found.insert(0, block)
            missing = (missing - block.defined) | block.missing
    return found

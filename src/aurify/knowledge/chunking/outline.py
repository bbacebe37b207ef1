"""Which definitions a source file has, and where: read from the syntax tree that tree-sitter makes of it.

A definition's lines begin with the comments and decorators directly above it; `about` is the first sentence of its
docstring or comment. Languages differ in one table; a grammar is imported when a file of its language is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from aurify.files import require

MAX_ABOUT, MAX_LINES = 160, 8  # characters and lines of `about`
MAX_DEPTH = 12  # of definitions in definitions; deeper ones are cut by lines


class Language(NamedTuple):
    """How tree-sitter's grammar names things, by spaces. `values` are nodes that define a name if their value is a
    function."""

    module: str
    definitions: str
    imports: str
    values: str = ""
    function: str = "language"


C = "function_definition struct_specifier union_specifier enum_specifier type_definition preproc_function_def"
JAVASCRIPT = "function_declaration generator_function_declaration class_declaration method_definition"
TYPESCRIPT = (
    f"{JAVASCRIPT} interface_declaration type_alias_declaration enum_declaration abstract_class_declaration "
    "internal_module"
)
VALUES = "variable_declarator assignment_expression field_definition public_field_definition"
LANGUAGES = {
    "python": Language(
        "tree_sitter_python",
        "function_definition class_definition",
        "import_statement import_from_statement future_import_statement",
    ),
    "javascript": Language("tree_sitter_javascript", JAVASCRIPT, "import_statement", VALUES),
    "typescript": Language("tree_sitter_typescript", TYPESCRIPT, "import_statement", VALUES, "language_typescript"),
    "tsx": Language("tree_sitter_typescript", TYPESCRIPT, "import_statement", VALUES, "language_tsx"),
    "go": Language(
        "tree_sitter_go", "function_declaration method_declaration type_spec type_alias", "import_declaration"
    ),
    "rust": Language(
        "tree_sitter_rust",
        "function_item struct_item enum_item union_item trait_item impl_item mod_item macro_definition",
        "use_declaration",
    ),
    "java": Language(
        "tree_sitter_java",
        "class_declaration interface_declaration enum_declaration record_declaration method_declaration "
        "constructor_declaration compact_constructor_declaration annotation_type_declaration",
        "import_declaration",
    ),
    "c": Language("tree_sitter_c", C, "preproc_include"),
    "cpp": Language(
        "tree_sitter_cpp",
        f"{C} class_specifier namespace_definition concept_definition",
        "preproc_include using_declaration",
    ),
}
FUNCTION_VALUES = {"arrow_function", "function_expression", "generator_function", "class"}
NEED_A_BODY = {"struct_specifier", "union_specifier", "enum_specifier", "class_specifier"}
AROUND = (  # nodes whose first line belongs to the definition inside
    *("decorated_definition", "export_statement", "lexical_declaration", "variable_declaration"),
    *("expression_statement", "type_declaration", "template_declaration"),
)
REMARK = re.compile(r"""[ \t]*[rRuU]?(\"{3}|'{3}|"|'|/\*+!?|//+!?|\#+(?=[\s!]|$)|--)[ \t]*""")
CLOSING = {'"""': '"""', "'''": "'''", '"': '"', "'": "'", "/*": "*/", "/**": "*/", "/*!": "*/"}
LEGAL = re.compile(r"copyright|licen[cs]e|spdx|coding[:=]|^!", re.IGNORECASE)
ABOVE = ("comment", "attribute_item", "decorator")  # what stands directly above a definition and belongs to it


@dataclass
class Definition:
    """Lines from 0, `end` excluded, with the comments and decorators directly above."""

    name: str
    first: int
    end: int
    line: int  # where the definition itself begins
    about: str = ""  # the first sentence of its docstring, or of the comment above
    inside: list[Definition] = field(default_factory=list)


@dataclass(frozen=True)
class Outline:
    definitions: list[Definition]
    imports: list[int]  # their first lines
    about: str = ""

    def walk(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """The way down to each definition, and in words what it is a part of; a definition before those inside it."""

        def descend(
            definitions: Sequence[Definition], above: tuple[str, ...], context: str
        ) -> Iterator[tuple[tuple[str, ...], str]]:
            for definition in definitions:
                path = (*above, definition.name)
                yield path, context
                yield from descend(definition.inside, path, "\n".join(filter(None, (self.about, definition.about))))

        return descend(self.definitions, (), self.about)

    def contexts(self) -> dict[tuple[str, ...], str]:
        """What each definition is a part of, by the way down to it; the first of several with one name counts."""
        return dict(reversed([((), self.about), *self.walk()]))


@cache
def load_code_grammar(format: str) -> Any:
    spec = LANGUAGES[format]
    purpose = f"to cut {format} code with {spec.module.replace('_', '-')}"
    tree_sitter = require("tree_sitter", "memory", purpose)
    return tree_sitter.Language(getattr(require(spec.module, "memory", purpose), spec.function)())


def read_code_outline(text: str, format: str) -> Outline:
    """Empty where nothing can be parsed; the file is then cut at its lines. Walks the tree without recursion, since a
    file may be nested as deep as its author likes."""
    spec = LANGUAGES[format]
    definitions, imports, values = (set(names.split()) for names in (spec.definitions, spec.imports, spec.values))
    grammar = load_code_grammar(format)
    from tree_sitter import Parser  # load_code_grammar says what is missing

    root = Parser(grammar).parse(text.encode("utf-8", "surrogatepass")).root_node
    lines = text.split("\n")
    outline = Outline([], [], read_outline_comment(lines, int(text.startswith("#!"))))
    stack: list[tuple[Any, list[Definition], int, int]] = [(root, outline.definitions, 0, 0)]
    while stack:
        node, siblings, first, depth = stack.pop()
        if node.type in imports:
            outline.imports.append(node.start_point.row)
            continue
        if depth < MAX_DEPTH and (name := find_outline_name(node, definitions, values)):
            row = node.start_point.row
            about = read_outline_comment(lines, first) or read_outline_comment(lines, row + 1)
            definition = Definition(name, first, last_node_row(node) + 1, row, about)
            siblings.append(definition)
            siblings, depth = definition.inside, depth + 1
        if node.child_count:
            around = first if node.type in AROUND else None
            stack += [(child, siblings, row, depth) for child, row in reversed(list_node_children(node, around))]
    return outline


def list_node_children(node: Any, around: int | None) -> list[tuple[Any, int]]:
    """The children and the row where each begins: with the comments directly above it, or `around`, the row of the node
    that surrounds it."""
    result, lead, lead_end = [], None, -1
    for child in node.named_children:
        row = child.start_point.row
        if child.type.endswith(ABOVE):
            lead = row if lead is None or row > lead_end + 1 else lead
            lead_end = last_node_row(child)
            continue
        first = lead if lead is not None and row <= lead_end + 1 else row
        result.append((child, first if around is None else min(around, first)))
        lead = None
    return result


def last_node_row(node: Any) -> int:
    """A node whose last character is a line break ends, for tree-sitter, in the next row."""
    end = node.end_point
    return max(node.start_point.row, end.row - (end.column == 0))


def find_outline_name(node: Any, definitions: set[str], values: set[str]) -> str | None:
    """The name that a node defines; None where it defines none."""
    if node.type in values:
        value = node.child_by_field_name("value") or node.child_by_field_name("right")
        if value is None or value.type not in FUNCTION_VALUES:
            return None
        found = next(filter(None, map(node.child_by_field_name, ("name", "property", "left"))), None)
        return read_node_text(found)
    if node.type not in definitions or (node.type in NEED_A_BODY and node.child_by_field_name("body") is None):
        return None
    if node.type == "impl_item":
        trait, of = read_node_text(node.child_by_field_name("trait")), read_node_text(node.child_by_field_name("type"))
        return f"{trait} for {of}" if trait else of
    named = node.child_by_field_name("name")
    declarator = node.child_by_field_name("declarator")
    while named is None and declarator is not None:  # C: the name is inside pointers and parameters
        inner = declarator.child_by_field_name("declarator")
        named, declarator = (declarator, None) if inner is None else (None, inner)
    receiver = re.search(r"(\w+)(?:\[.*\])?\s*\)$", read_node_text(node.child_by_field_name("receiver")) or "")
    name = read_node_text(named)
    return f"{receiver[1]}.{name}" if receiver and name else name


def read_outline_comment(lines: Sequence[str], row: int) -> str:
    """The first sentence of the docstring or comment that begins in a line; empty where none does."""
    opening = REMARK.match(lines[row]) if row < len(lines) else None
    if opening is None:
        return ""
    closing = CLOSING.get(opening[1])  # None for comments of single lines, such as # and //
    words: list[str] = []
    for number, line in enumerate(lines[row : row + MAX_LINES]):
        remark = REMARK.match(line)
        if closing is None and (remark is None or remark[1] != opening[1]):
            break
        inside = line[opening.end() :] if number == 0 else line[remark.end() :] if closing is None and remark else line
        bare = inside.strip(" \t*/") if closing is None or closing == "*/" else inside.partition(closing)[0].strip()
        if LEGAL.search(bare) or (words and not bare):
            break
        words += bare.split()
        if closing is not None and closing in inside:
            break
    sentence = " ".join(words)
    end = re.search(r"[.!?](?: |$)", sentence)
    return sentence[: end.start() + 1 if end else None][:MAX_ABOUT]


def read_node_text(node: Any) -> str | None:
    return " ".join(node.text.decode("utf-8", "replace").split())[:100] if node is not None else None

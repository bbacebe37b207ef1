"""Source code to passages: an outline of its definitions from tree-sitter, then pieces along the outline.

A definition that fits is one piece; one that does not is cut at the definitions inside it, if it is made of them, and
else at its lines. Pieces are whole lines and do not overlap, except for parts of one cut function, so that no result
has to be freed of doubles. Departs from osgrep, where a class and its methods are chunks over the same lines.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

from aurify.errors import UserError
from aurify.memory.pieces import ChunkOptions, Count, Kind, Piece, cut, lines_of, merge_small, pack

MAX_LINE = 200  # characters of a line in an anchor or a context
MAX_DEPTH = 12  # of definitions in definitions; what lies deeper is cut by lines


@dataclass(frozen=True)
class Language:
    """How tree-sitter's grammar names things. `values` are nodes that define a name if their value is a function."""

    module: str
    definitions: frozenset[str]
    imports: frozenset[str]
    values: frozenset[str] = frozenset()
    function: str = "language"


def language(module: str, definitions: str, imports: str, values: str = "", function: str = "language") -> Language:
    return Language(
        module, frozenset(definitions.split()), frozenset(imports.split()), frozenset(values.split()), function
    )


C = "function_definition struct_specifier union_specifier enum_specifier type_definition preproc_function_def"
JAVASCRIPT = "function_declaration generator_function_declaration class_declaration method_definition"
TYPESCRIPT = f"{JAVASCRIPT} interface_declaration type_alias_declaration enum_declaration abstract_class_declaration"
VALUES = "variable_declarator assignment_expression field_definition public_field_definition"
LANGUAGES = {
    "python": language(
        "tree_sitter_python",
        "function_definition class_definition",
        "import_statement import_from_statement future_import_statement",
    ),
    "javascript": language("tree_sitter_javascript", JAVASCRIPT, "import_statement", VALUES),
    "typescript": language(
        "tree_sitter_typescript", f"{TYPESCRIPT} internal_module", "import_statement", VALUES, "language_typescript"
    ),
    "tsx": language(
        "tree_sitter_typescript", f"{TYPESCRIPT} internal_module", "import_statement", VALUES, "language_tsx"
    ),
    "go": language(
        "tree_sitter_go", "function_declaration method_declaration type_spec type_alias", "import_declaration"
    ),
    "rust": language(
        "tree_sitter_rust",
        "function_item struct_item enum_item union_item trait_item impl_item mod_item macro_definition",
        "use_declaration",
    ),
    "java": language(
        "tree_sitter_java",
        "class_declaration interface_declaration enum_declaration record_declaration method_declaration "
        "constructor_declaration compact_constructor_declaration annotation_type_declaration",
        "import_declaration",
    ),
    "c": language("tree_sitter_c", C, "preproc_include"),
    "cpp": language(
        "tree_sitter_cpp",
        f"{C} class_specifier namespace_definition concept_definition",
        "preproc_include using_declaration",
    ),
}
FUNCTION_VALUES = {"arrow_function", "function_expression", "generator_function", "class"}
NEED_A_BODY = {"struct_specifier", "union_specifier", "enum_specifier", "class_specifier"}
AROUND = {  # nodes whose first line belongs to the definition inside
    "decorated_definition",
    "export_statement",
    "lexical_declaration",
    "variable_declaration",
    "expression_statement",
    "type_declaration",
    "template_declaration",
}
ABOVE = ("comment", "attribute_item", "decorator")  # what stands directly above a definition and belongs to it


@dataclass
class Definition:
    """Lines from 0, `end` excluded, with the comments and decorators directly above."""

    name: str
    first: int
    end: int
    line: int  # where the definition itself begins
    inside: list[Definition] = field(default_factory=list)


@dataclass(frozen=True)
class Outline:
    definitions: list[Definition]
    imports: list[int]  # their first lines

    def paths(self) -> Iterator[tuple[str, ...]]:
        """The way down to each definition, one before those in it."""
        stack: list[tuple[Definition, tuple[str, ...]]] = [(child, (child.name,)) for child in self.definitions[::-1]]
        while stack:
            definition, path = stack.pop()
            yield path
            stack += [(child, (*path, child.name)) for child in reversed(definition.inside)]


@cache
def load_grammar(format: str) -> Any:
    spec = LANGUAGES[format]
    try:
        tree_sitter, module = importlib.import_module("tree_sitter"), importlib.import_module(spec.module)
    except ImportError as error:
        raise UserError(
            f"cutting {format} code needs tree-sitter and {spec.module.replace('_', '-')} ({error}): "
            "pip install 'aurify[memory]'"
        ) from None
    return tree_sitter.Language(getattr(module, spec.function)())


def read_outline(text: str, format: str) -> Outline:
    """Empty where nothing can be parsed; the file is then cut at its lines. Walks the tree without recursion: how deep
    it is was decided by whoever wrote the file."""
    spec = LANGUAGES[format]
    grammar = load_grammar(format)
    from tree_sitter import Parser  # load_grammar says what is missing

    root = Parser(grammar).parse(text.encode("utf-8", "surrogatepass")).root_node
    outline = Outline([], [])
    stack: list[tuple[Any, list[Definition], int, int]] = [(root, outline.definitions, 0, 0)]
    while stack:
        node, siblings, first, depth = stack.pop()
        if node.type in spec.imports:
            outline.imports.append(node.start_point.row)
            continue
        if depth < MAX_DEPTH and (name := defined_name(node, spec)):
            definition = Definition(name, first, last_row(node) + 1, node.start_point.row)
            siblings.append(definition)
            siblings, depth = definition.inside, depth + 1
        if node.child_count:
            below = first if node.type in AROUND else None
            stack += [(child, siblings, row, depth) for child, row in reversed(children_with_rows(node, below))]
    return outline


def children_with_rows(node: Any, above: int | None) -> list[tuple[Any, int]]:
    """The children and where each begins: with the comments directly above it, or with the node around it."""
    result, lead, lead_end = [], None, -1
    for child in node.named_children:
        row = child.start_point.row
        if child.type.endswith(ABOVE) or child.type in ABOVE:
            lead = row if lead is None or row > lead_end + 1 else lead
            lead_end = last_row(child)
            continue
        first = lead if lead is not None and row <= lead_end + 1 else row
        result.append((child, first if above is None else min(above, first)))
        lead = None
    return result


def last_row(node: Any) -> int:
    """A node that ends with its line ends at the beginning of the next one."""
    end = node.end_point
    return max(node.start_point.row, end.row - (end.column == 0))


def defined_name(node: Any, spec: Language) -> str | None:
    """The name that a node defines; None where it defines none."""
    if node.type in spec.values:
        value = node.child_by_field_name("value") or node.child_by_field_name("right")
        if value is None or value.type not in FUNCTION_VALUES:
            return None
        found = next(filter(None, map(node.child_by_field_name, ("name", "property", "left"))), None)
        return decoded(found)
    if node.type not in spec.definitions or (node.type in NEED_A_BODY and node.child_by_field_name("body") is None):
        return None
    if node.type == "impl_item":
        trait, of = decoded(node.child_by_field_name("trait")), decoded(node.child_by_field_name("type"))
        return f"{trait} for {of}" if trait else of
    named = node.child_by_field_name("name")
    declarator = node.child_by_field_name("declarator")
    while named is None and declarator is not None:  # C: the name is inside pointers and parameters
        inner = declarator.child_by_field_name("declarator")
        named, declarator = (declarator, None) if inner is None else (None, inner)
    receiver = re.search(r"(\w+)(?:\[.*\])?\s*\)$", decoded(node.child_by_field_name("receiver")) or "")
    name = decoded(named)
    return f"{receiver[1]}.{name}" if receiver and name else name


def decoded(node: Any) -> str | None:
    return " ".join(node.text.decode("utf-8", "replace").split())[:100] if node is not None else None


def code_pieces(text: str, title: str, outline: Outline, options: ChunkOptions, count: Count) -> list[Piece]:
    return Cutting(text, title, outline, options, count).pieces()


class Cutting:
    """One file on the way to its pieces. Lines and breadcrumbs are counted once, in one call."""

    def __init__(self, text: str, title: str, outline: Outline, options: ChunkOptions, count: Count):
        self.text, self.outline, self.options, self.count = text, outline, options, count
        self.lines = [text[start:end] for start, end in lines_of(text)]
        paths = list(outline.paths())
        numbers = count([title, *map(" > ".join, paths), *self.lines])
        self.title_tokens = numbers[0]
        self.path_tokens = {(): 0, **dict(zip(paths, numbers[1:], strict=False))}
        self.offsets = [0, *accumulate(map(len, self.lines))]
        self.totals = [0, *accumulate(numbers[1 + len(paths) :])]

    def pieces(self) -> list[Piece]:
        found = list(self.along(self.outline.definitions, 0, len(self.lines), ()))
        return merge_small(found, self.options.min_tokens, self.fits)

    def along(
        self, definitions: Sequence[Definition], begin: int, end: int, breadcrumb: tuple[str, ...]
    ) -> Iterator[Piece]:
        """Lines from `begin` to `end`: the definitions, and as blocks what stands between them."""
        kind: Kind = "definition" if breadcrumb else "block"  # the first lines of a class are its head
        for definition in definitions:
            first, last = max(definition.first, begin), min(definition.end, end)
            if first >= last:
                continue  # on the line where the one before ends
            yield from self.within(begin, first, breadcrumb, kind)
            yield from self.one(definition, first, last, (*breadcrumb, definition.name))
            begin, kind = last, "block"
        yield from self.within(begin, end, breadcrumb, kind)

    def one(self, definition: Definition, first: int, last: int, breadcrumb: tuple[str, ...]) -> Iterator[Piece]:
        whole = self.piece(first, last, breadcrumb, "definition")
        if self.fits(whole):
            yield whole
        elif 2 * sum(child.end - child.first for child in definition.inside) >= last - first:
            yield from self.along(definition.inside, first, last, breadcrumb)
        else:
            yield from self.within(first, last, breadcrumb, "definition", definition.line)

    def within(
        self, first: int, last: int, breadcrumb: tuple[str, ...], kind: Kind, head: int | None = None
    ) -> Iterator[Piece]:
        """Lines as they are, cut where they are too many; later parts keep the line that a definition began with."""
        while first < last and not self.lines[first].strip():
            first += 1
        head_tokens = self.totals[head + 1] - self.totals[head] if head is not None else 0
        if head_tokens > self.options.max_tokens // 8:
            head, head_tokens = None, 0
        units = [self.piece(row, row + 1, breadcrumb, kind) for row in range(first, last)]

        def fits(start: int, end: int, tokens: int) -> bool:
            return self.fits(Piece(start, end, tokens, breadcrumb), head_tokens)

        parts = pack(cut(self.text, units, fits, self.count), fits, self.options.overlap)
        for number, part in enumerate(parts):
            context = self.lines[head].strip() if number and head is not None else ""
            tokens = part.tokens + (head_tokens if context else 0)
            yield Piece(part.start, part.end, tokens, breadcrumb, kind, context)

    def piece(self, first: int, last: int, breadcrumb: tuple[str, ...], kind: Kind) -> Piece:
        tokens = self.totals[last] - self.totals[first]
        return Piece(self.offsets[first], self.offsets[last], tokens, breadcrumb, kind)

    def fits(self, piece: Piece, context_tokens: int = 0) -> bool:
        above = self.title_tokens + self.path_tokens[piece.breadcrumb] + context_tokens
        room = max(self.options.max_tokens - above, self.options.max_tokens // 2)
        return (
            piece.tokens <= room
            and piece.end - piece.start <= self.options.max_chars
            and self.text.count("\n", piece.start, piece.end) <= self.options.max_lines
        )


def anchor_text(text: str, outline: Outline, room: int, count: Count) -> str:
    """What a file is about, in few lines: how it begins, what it imports, what it defines."""
    lines = text.split("\n")
    start = min([definition.first for definition in outline.definitions] + outline.imports, default=len(lines))
    opening = [line for line in lines[:start] if line.strip()][:20]
    defined = [f"defines {'.'.join(path)}" for path in outline.paths()]
    wanted = [line[:MAX_LINE] for line in (*opening, *defined, *(lines[row].strip() for row in outline.imports))]
    kept: list[str] = []
    for line, tokens in zip(wanted, count(wanted), strict=True):
        room -= tokens
        if room < 0 and kept:
            break
        kept.append(line)
    return "\n".join(kept)

"""Source code to passages, along the outline of its definitions.

A definition that fits is one piece; one that does not fit is cut at the definitions inside it, if it consists of them,
and else at its lines. Pieces are whole lines and do not overlap, except for the parts of one cut function. Departs from
osgrep, where a class and its methods are chunks over the same lines. A piece is embedded under the first sentences of
its file and its class: code is terse, and questions are not about names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from aurify.knowledge.chunking.outline import Definition, Outline
from aurify.knowledge.chunking.pieces import (
    ChunkOptions,
    Count,
    Kind,
    Piece,
    bundle_pieces,
    cut_pieces,
    merge_small_pieces,
    split_document_lines,
)

MAX_LINE = 200  # characters of a line in an anchor


class CodeCutter:
    """Cuts one file. The tokens of all lines and breadcrumbs are counted in one call."""

    def __init__(self, text: str, title: str, outline: Outline, options: ChunkOptions, count: Count):
        self.text, self.outline, self.options, self.count = text, outline, options, count
        self.lines = [text[start:end] for start, end in split_document_lines(text)]
        self.contexts = outline.contexts()
        paths, contexts = list(self.contexts), list(self.contexts.values())
        numbers = count([*contexts, *(f"{title}\n{' > '.join(path)}" for path in paths), *self.lines])
        self.tokens_above: dict[tuple[str, ...], int] = {}
        for path, context_tokens, name_tokens in zip(paths, numbers, numbers[len(paths) :], strict=False):
            if context_tokens > options.max_tokens // 4:
                self.contexts[path] = ""
            self.tokens_above[path] = name_tokens + (context_tokens if self.contexts[path] else 0)
        self.offsets = [0, *accumulate(map(len, self.lines))]
        self.totals = [0, *accumulate(numbers[2 * len(paths) :])]

    def cut(self) -> list[Piece]:
        found = list(self.cut_along(self.outline.definitions, 0, len(self.lines), ()))
        merged = merge_small_pieces(found, self.options.min_tokens, self.fits)
        return [
            replace(piece, context="\n".join(filter(None, (self.contexts[piece.breadcrumb], piece.context))))
            for piece in merged
        ]

    def cut_along(
        self, definitions: Sequence[Definition], begin: int, end: int, breadcrumb: tuple[str, ...]
    ) -> Iterator[Piece]:
        """Lines from `begin` to `end`: the definitions, and as blocks what stands between them."""
        kind: Kind = "definition" if breadcrumb else "block"  # the first lines of a class are its head
        for definition in definitions:
            first, last = max(definition.first, begin), min(definition.end, end)
            if first >= last:
                continue  # it begins on the line where the one before ends
            yield from self.cut_lines(begin, first, breadcrumb, kind)
            yield from self.cut_definition(definition, first, last, (*breadcrumb, definition.name))
            begin, kind = last, "block"
        yield from self.cut_lines(begin, end, breadcrumb, kind)

    def cut_definition(
        self, definition: Definition, first: int, last: int, breadcrumb: tuple[str, ...]
    ) -> Iterator[Piece]:
        whole = self.to_piece(first, last, breadcrumb, "definition")
        if self.fits(whole):
            yield whole
        elif 2 * sum(child.end - child.first for child in definition.inside) >= last - first:
            yield from self.cut_along(definition.inside, first, last, breadcrumb)
        else:
            yield from self.cut_lines(first, last, breadcrumb, "definition", definition.line)

    def cut_lines(
        self, first: int, last: int, breadcrumb: tuple[str, ...], kind: Kind, head: int | None = None
    ) -> Iterator[Piece]:
        """Lines as they are, cut where they are too many; later parts keep the line that a definition began with."""
        while first < last and not self.lines[first].strip():
            first += 1
        head_tokens = self.totals[head + 1] - self.totals[head] if head is not None else 0
        if head_tokens > self.options.max_tokens // 8:
            head, head_tokens = None, 0
        units = [self.to_piece(row, row + 1, breadcrumb, kind) for row in range(first, last)]

        def fits(start: int, end: int, tokens: int) -> bool:
            return self.fits(Piece(start, end, tokens, breadcrumb), head_tokens)

        parts = bundle_pieces(cut_pieces(self.text, units, fits, self.count), fits, self.options.overlap)
        for number, part in enumerate(parts):
            context = self.lines[head].strip() if number and head is not None else ""
            tokens = part.tokens + (head_tokens if context else 0)
            yield Piece(part.start, part.end, tokens, breadcrumb, kind, context)

    def to_piece(self, first: int, last: int, breadcrumb: tuple[str, ...], kind: Kind) -> Piece:
        tokens = self.totals[last] - self.totals[first]
        return Piece(self.offsets[first], self.offsets[last], tokens, breadcrumb, kind)

    def fits(self, piece: Piece, context_tokens: int = 0) -> bool:
        above = self.tokens_above[piece.breadcrumb] + context_tokens
        room = max(self.options.max_tokens - above, self.options.max_tokens // 2)
        return (
            piece.tokens <= room
            and piece.end - piece.start <= self.options.max_chars
            and self.text.count("\n", piece.start, piece.end) <= self.options.max_lines
        )


def summarize_code_document(text: str, outline: Outline, room: int, count: Count) -> str:
    """What a file is about, in few lines: how it begins, what it defines, what it imports."""
    lines = text.split("\n")
    start = min([definition.first for definition in outline.definitions] + outline.imports, default=len(lines))
    opening = [line for line in lines[:start] if line.strip()][:20]
    defined = [f"defines {'.'.join(path)}" for path, _ in outline.walk()]
    wanted = [line[:MAX_LINE] for line in (*opening, *defined, *(lines[row].strip() for row in outline.imports))]
    kept: list[str] = []
    for line, tokens in zip(wanted, count(wanted), strict=True):
        room -= tokens
        if room < 0 and kept:
            break
        kept.append(line)
    return "\n".join(kept)

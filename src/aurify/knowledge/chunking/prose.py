"""Prose to passages: by headings, then paragraphs, then sentences, as many together as a token budget allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from aurify.knowledge.chunking.pieces import (
    ChunkOptions,
    Count,
    Piece,
    bundle_pieces,
    cut_pieces,
    merge_small_pieces,
    split_document_lines,
)
from aurify.knowledge.reading.refusals import FRONT_MATTER
from aurify.knowledge.types import Document

HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
MAX_HEADING = 120  # characters of a heading in a breadcrumb

Paragraph = tuple[int, int, tuple[str, ...]]  # start, end, headings above


def cut_prose(document: Document, options: ChunkOptions, count: Count) -> list[Piece]:
    """`count` is without special tokens. A section is cut where it is too long, and joined to its neighbour where it is
    very short."""
    text = document.text
    paragraphs = list(split_markdown(text) if document.format == "markdown" else split_document_paragraphs(text))
    if not paragraphs:
        return []
    crumbs = list(dict.fromkeys(breadcrumb for _, _, breadcrumb in paragraphs))
    tokens = count([document.title, *map(" > ".join, crumbs), *(text[start:end] for start, end, _ in paragraphs)])
    title, above = tokens[0], dict(zip(crumbs, tokens[1:], strict=False))

    def budget(breadcrumb: tuple[str, ...]) -> int:
        """At least half of the window, however long the title is."""
        return max(options.max_tokens - title - above.get(breadcrumb, 0), options.max_tokens // 2)

    units = [
        Piece(start, end, num, breadcrumb)
        for (start, end, breadcrumb), num in zip(paragraphs, tokens[1 + len(crumbs) :], strict=True)
    ]
    pieces: list[Piece] = []
    for breadcrumb, section in groupby(units, key=lambda unit: unit.breadcrumb):
        room = budget(breadcrumb)

        def fits(start: int, end: int, tokens: int, room: int = room) -> bool:
            return tokens <= room

        pieces += bundle_pieces(cut_pieces(text, list(section), fits, count), fits, options.overlap)
    return merge_small_pieces(pieces, options.min_tokens, lambda piece: piece.tokens <= budget(piece.breadcrumb))


def split_document_paragraphs(text: str) -> Iterator[Paragraph]:
    """Paragraphs between blank lines; the blank lines go with the one before."""
    begin, blank = 0, False
    for start, end in split_document_lines(text):
        empty = not text[start:end].strip()
        if blank and not empty:
            if text[begin:start].strip():
                yield begin, start, ()
            begin = start
        blank = empty
    if text[begin:].strip():
        yield begin, len(text), ()


def split_markdown(text: str) -> Iterator[Paragraph]:
    """Paragraphs under their headings. A fenced block is one paragraph, whatever its lines look like; a heading begins
    the first paragraph of its section."""
    path: list[tuple[int, str]] = []
    begin, blank, fence = 0, False, ""
    front = FRONT_MATTER.match(text)
    front_end = front.end() if front else 0
    heading_only = False  # since `begin` there was only a heading: the next paragraph joins it
    for start, end in split_document_lines(text):
        line = text[start:end].rstrip("\n")
        if end <= front_end:
            continue
        if fence:
            fence = "" if closes_markdown_fence(line, fence) else fence
            continue
        found = read_markdown_heading(text, line, end)
        if found or (blank and line.strip() and not heading_only):
            if text[begin:start].strip():
                yield begin, start, tuple(name for _, name in path)
            begin = start
        if found:
            level, name = found
            path = [*(entry for entry in path if entry[0] < level), (level, name)]
        fence = match[1] if (match := FENCE.match(line)) else ""
        heading_only = bool(found) or (heading_only and (not line.strip() or bool(UNDERLINE.match(line))))
        blank = not line.strip()
    if text[begin:].strip():
        yield begin, len(text), tuple(name for _, name in path)


def closes_markdown_fence(line: str, fence: str) -> bool:
    mark = line.strip()
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def read_markdown_heading(text: str, line: str, end: int) -> tuple[int, str] | None:
    """(level, name) of `# name`, and of a line that the next one underlines."""
    if match := HEADING.match(line):
        return len(match[1]), match[2][:MAX_HEADING]
    if not line.strip() or line.lstrip()[0] in "-*+>|`~=" or line.startswith("    "):
        return None
    below = UNDERLINE.match(text[end:].partition("\n")[0])
    return (1 if below[1][0] == "=" else 2, line.strip()[:MAX_HEADING]) if below else None

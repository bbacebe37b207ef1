"""A document to chunks: code by its definitions, all else by headings, paragraphs and sentences.

    from aurify.knowledge.chunking.chunk import ChunkOptions, chunk_document
    chunks = chunk_document(Document("notes.md", text, format="markdown"), ChunkOptions(), embedder.count_tokens)

Nothing but white space is left out: every other character of the text lies in a chunk.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from aurify.knowledge.chunking.code import CodeCutter, summarize_code_document
from aurify.knowledge.chunking.outline import LANGUAGES, read_code_outline
from aurify.knowledge.chunking.pieces import ChunkOptions, Piece
from aurify.knowledge.chunking.prose import cut_prose
from aurify.knowledge.types import Chunk, Document

__all__ = ["ChunkOptions", "chunk_document"]


def chunk_document(
    document: Document, options: ChunkOptions, count_tokens: Callable[[Sequence[str]], list[int]]
) -> list[Chunk]:
    """In the order of the text; code begins with the anchor of its file. `count_tokens` may count special tokens, such
    as the two around each text; it must not stop at the model's window."""
    text, title = document.text, document.title or document.id
    if not text.strip():
        return []
    special = count_tokens([""])[0]
    least = max(options.min_tokens, options.overlap) + 1
    options = replace(options, max_tokens=max(options.max_tokens - special, least))

    def count(texts: Sequence[str]) -> list[int]:
        return [num - special for num in count_tokens(texts)]

    newlines = [match.start() for match in re.finditer("\n", text)]
    if document.format not in LANGUAGES:
        return pieces_to_chunks(document, document.title, cut_prose(document, options, count), newlines)
    outline = read_code_outline(text, document.format)
    summary = summarize_code_document(text, outline, options.max_tokens - count([title])[0], count)
    anchor = Chunk(
        document=document.id,
        index=0,
        text=summary,
        start=0,
        end=len(text),
        first_line=1,
        last_line=len(newlines) + (not text.endswith("\n")),
        title=title,
        kind="anchor",
        num_tokens=count([summary])[0],
    )
    pieces = CodeCutter(text, title, outline, options, count).cut()
    return [anchor, *pieces_to_chunks(document, title, pieces, newlines, first=1)]


def pieces_to_chunks(
    document: Document, title: str, pieces: Sequence[Piece], newlines: Sequence[int], first: int = 0
) -> list[Chunk]:
    chunks: list[Chunk] = []
    for piece in pieces:
        start, end = trim_chunk(document.text, piece)
        if start == end:
            continue
        chunks.append(
            Chunk(
                document=document.id,
                index=first + len(chunks),
                text=document.text[start:end],
                start=start,
                end=end,
                first_line=bisect_left(newlines, start) + 1,
                last_line=bisect_left(newlines, end - 1) + 1,
                title=title,
                breadcrumb=piece.breadcrumb,
                kind=piece.kind,
                context=piece.context,
                num_tokens=piece.tokens,
            )
        )
    return chunks


def trim_chunk(text: str, piece: Piece) -> tuple[int, int]:
    """Without white space at the ends. Code keeps the indentation of its first line."""
    span = text[piece.start : piece.end]
    end = piece.start + len(span.rstrip())
    start = piece.start + len(span) - len(span.lstrip())
    if piece.kind != "prose" and start < end:
        start = max(piece.start, text.rfind("\n", 0, start) + 1)
    return start, max(start, end)

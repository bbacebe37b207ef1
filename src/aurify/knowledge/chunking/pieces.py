"""What cutting code and cutting prose have in common: the limits of a chunk, and how spans of a text are cut smaller,
packed together and merged. All of it is arithmetic on places in the text; tokens are counted by whoever embeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from aurify.bounds import Checked, NonNegativeInt, PositiveInt
from aurify.errors import UserError

Count = Callable[[Sequence[str]], list[int]]
Fits = Callable[[int, int, int], bool]  # start, end, tokens
Kind = Literal["prose", "definition", "block"]

SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]\u201d\u2019]*\s+|(?<=[\u3002\uff01\uff1f])\s*|\n+")
WORD_END = re.compile(r"\s+")


@dataclass(frozen=True)
class ChunkOptions(Checked):
    """Tokens are those of the embedder, over title, breadcrumb, context and text together: what is longer than its
    window would be stored and never seen by dense search. Lines and characters bound code only, where a large window
    would otherwise make one chunk of a file."""

    max_tokens: PositiveInt = 256
    # tokens at most of a cut text's end that its next part repeats, in whole sentences or lines
    overlap: NonNegativeInt = 32
    min_tokens: NonNegativeInt = 32  # a piece below this joins its neighbour, if both fit
    max_lines: PositiveInt = 75
    max_chars: PositiveInt = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("overlap", "min_tokens"):
            if getattr(self, name) >= self.max_tokens:
                raise UserError(
                    f"{name}: {getattr(self, name)} is out of range; it must be less than max_tokens "
                    f"({self.max_tokens})"
                )


@dataclass(frozen=True, slots=True)
class Piece:
    """A span of a document on its way to a chunk."""

    start: int
    end: int
    tokens: int  # with those of its context
    breadcrumb: tuple[str, ...] = ()
    kind: Kind = "prose"
    context: str = ""


def lines_of(text: str) -> Iterator[tuple[int, int]]:
    """Lines as editors and parsers count them, each with its end: str.splitlines would also cut at form feeds."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield start, end
        start = end


def ends_of(text: str, start: int, end: int, boundary: re.Pattern[str]) -> list[int]:
    """Where the parts of a span end, white space after them included."""
    ends = [match.end() for match in boundary.finditer(text, start, end) if start < match.end() < end]
    return [*ends, end]


def cut(text: str, pieces: Sequence[Piece], fits: Fits, count: Count) -> list[Piece]:
    """The same spans, where those that do not fit have become sentences, then words, then halves of words."""
    for ends in (sentences, words):
        pieces = recount(text, pieces, fits, count, ends)
    while any(piece.end - piece.start > 1 and not fits(piece.start, piece.end, piece.tokens) for piece in pieces):
        pieces = recount(text, pieces, fits, count, halves)
    return list(pieces)


def sentences(text: str, start: int, end: int) -> list[int]:
    return ends_of(text, start, end, SENTENCE_END)


def words(text: str, start: int, end: int) -> list[int]:
    return ends_of(text, start, end, WORD_END)


def halves(text: str, start: int, end: int) -> list[int]:
    return [(start + end) // 2, end] if end - start > 1 else [end]


def recount(
    text: str, pieces: Sequence[Piece], fits: Fits, count: Count, ends: Callable[[str, int, int], list[int]]
) -> list[Piece]:
    """Cuts the pieces that do not fit at their `ends`; all parts are counted in one call."""
    whole = [fits(piece.start, piece.end, piece.tokens) for piece in pieces]
    parts = {
        piece.start: list(pairwise([piece.start, *ends(text, piece.start, piece.end)]))
        for piece, fine in zip(pieces, whole, strict=True)
        if not fine
    }
    tokens = iter(count([text[start:end] for spans in parts.values() for start, end in spans]) if parts else [])
    result: list[Piece] = []
    for piece, fine in zip(pieces, whole, strict=True):
        if fine:
            result.append(piece)
        else:
            result.extend(replace(piece, start=a, end=b, tokens=next(tokens)) for a, b in parts[piece.start])
    return result


def pack(units: Sequence[Piece], fits: Fits, overlap: int = 0) -> Iterator[Piece]:
    """Neighbours joined from the front for as long as they fit. What is cut here repeats up to `overlap` tokens."""
    run: list[Piece] = []
    tokens = 0
    for unit in units:
        if run and not fits(run[0].start, unit.end, tokens + unit.tokens):
            yield joined(run)
            run = tail(run, unit, fits, overlap)
            tokens = sum(piece.tokens for piece in run)
        run.append(unit)
        tokens += unit.tokens
    if run:
        yield joined(run)


def tail(run: Sequence[Piece], unit: Piece, fits: Fits, overlap: int) -> list[Piece]:
    """The last of a run, never all of it, that may stand before the next unit again."""
    kept: list[Piece] = []
    for piece in reversed(run[1:]):
        tokens = piece.tokens + sum(other.tokens for other in kept)
        if tokens > overlap or not fits(piece.start, unit.end, tokens + unit.tokens):
            break
        kept.insert(0, piece)
    return kept


def joined(run: Sequence[Piece]) -> Piece:
    return replace(run[0], end=run[-1].end, tokens=sum(piece.tokens for piece in run))


def merge_small(pieces: Sequence[Piece], min_tokens: int, fits: Callable[[Piece], bool]) -> list[Piece]:
    """Joins a piece below `min_tokens` to the one before or after it, if the two fit together. The rest of a cut
    definition joins no other one: neither would be found under its name."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        small = last is not None and min(last.tokens, piece.tokens) < min_tokens
        apart = last is not None and last.context and last.breadcrumb != piece.breadcrumb
        if last is not None and small and not apart and fits(both := union(last, piece)):
            result[-1] = both
        else:
            result.append(piece)
    return result


def union(one: Piece, two: Piece) -> Piece:
    """Two neighbours as one, under the breadcrumb that holds for both: a heading or a line between definitions goes
    with what it stands beside."""
    short, long = sorted((one.breadcrumb, two.breadcrumb), key=len)
    shared = long if long[: len(short)] == short else common(short, long)
    return Piece(
        min(one.start, two.start),
        max(one.end, two.end),
        one.tokens + two.tokens,
        shared,
        "definition" if "definition" in (one.kind, two.kind) else one.kind,
        one.context,
    )


def common(one: Sequence[str], two: Sequence[str]) -> tuple[str, ...]:
    num = next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return tuple(one[:num])

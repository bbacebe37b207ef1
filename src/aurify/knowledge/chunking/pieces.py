"""What cutting code and cutting prose have in common: the limits of a chunk, and how spans of a text are cut smaller,
packed together and merged. All of it is arithmetic on positions in the text; the embedder counts the tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, takewhile
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
    """Tokens are those of the embedder, over title, breadcrumb, context and text together: dense search never sees what
    is longer than the embedder's window. Lines and characters bound code alone, where a large window would otherwise
    make one chunk of a file."""

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


def split_document_lines(text: str) -> Iterator[tuple[int, int]]:
    """Lines as editors and parsers count them, each with its end: str.splitlines would also cut at form feeds."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield start, end
        start = end


def cut_pieces(text: str, pieces: Sequence[Piece], fits: Fits, count: Count) -> Sequence[Piece]:
    """The same spans, where those that do not fit have become sentences, then words, then halves of words."""
    for boundary in (SENTENCE_END, WORD_END):
        pieces = cut_unfit_pieces(text, pieces, fits, count, partial(find_piece_ends, text, boundary))
    while any(piece.end - piece.start > 1 and not fits(piece.start, piece.end, piece.tokens) for piece in pieces):
        pieces = cut_unfit_pieces(text, pieces, fits, count, find_piece_middle)
    return pieces


def find_piece_ends(text: str, boundary: re.Pattern[str], start: int, end: int) -> list[int]:
    """Where the parts of a span end, before its own end. White space belongs to the part before it."""
    return [match.end() for match in boundary.finditer(text, start, end) if start < match.end() < end]


def find_piece_middle(start: int, end: int) -> list[int]:
    return [(start + end) // 2] if end - start > 1 else []


def cut_unfit_pieces(
    text: str, pieces: Sequence[Piece], fits: Fits, count: Count, find: Callable[[int, int], list[int]]
) -> list[Piece]:
    """Cuts the pieces that do not fit where `find` says; all parts are counted in one call."""
    cuts = [
        None if fits(piece.start, piece.end, piece.tokens) else [piece.start, *find(piece.start, piece.end), piece.end]
        for piece in pieces
    ]
    tokens = iter(count([text[start:end] for ends in cuts if ends for start, end in pairwise(ends)]))
    result: list[Piece] = []
    for piece, ends in zip(pieces, cuts, strict=True):
        if ends is None:
            result.append(piece)
        else:
            result += [replace(piece, start=start, end=end, tokens=next(tokens)) for start, end in pairwise(ends)]
    return result


def bundle_pieces(units: Sequence[Piece], fits: Fits, overlap: int = 0) -> Iterator[Piece]:
    """Joins neighbours from the front for as long as they fit. The next piece repeats up to `overlap` tokens."""
    run: list[Piece] = []
    tokens = 0
    for unit in units:
        if run and not fits(run[0].start, unit.end, tokens + unit.tokens):
            yield join_pieces(run)
            run = pick_piece_overlap(run, unit, fits, overlap)
            tokens = sum(piece.tokens for piece in run)
        run.append(unit)
        tokens += unit.tokens
    if run:
        yield join_pieces(run)


def pick_piece_overlap(run: Sequence[Piece], unit: Piece, fits: Fits, overlap: int) -> list[Piece]:
    """The last pieces of a run, never all of it, that may stand before the next unit once more."""
    kept: list[Piece] = []
    for piece in reversed(run[1:]):
        tokens = piece.tokens + sum(other.tokens for other in kept)
        if tokens > overlap or not fits(piece.start, unit.end, tokens + unit.tokens):
            break
        kept.insert(0, piece)
    return kept


def join_pieces(run: Sequence[Piece]) -> Piece:
    return replace(run[0], end=run[-1].end, tokens=sum(piece.tokens for piece in run))


def merge_small_pieces(pieces: Sequence[Piece], min_tokens: int, fits: Callable[[Piece], bool]) -> list[Piece]:
    """Joins a piece below `min_tokens` to the one before or after it, if the two fit together. The rest of a cut
    definition joins no other definition: neither would be found under its name."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        small = last is not None and min(last.tokens, piece.tokens) < min_tokens
        apart = last is not None and last.context and last.breadcrumb != piece.breadcrumb
        if last is not None and small and not apart and fits(both := merge_neighbour_pieces(last, piece)):
            result[-1] = both
        else:
            result.append(piece)
    return result


def merge_neighbour_pieces(one: Piece, two: Piece) -> Piece:
    """Two neighbours as one, under the breadcrumb that holds for both. A heading, or a line between definitions, takes
    the breadcrumb of its neighbour."""
    short, long = sorted((one.breadcrumb, two.breadcrumb), key=len)
    shared = tuple(name for name, _ in takewhile(lambda names: names[0] == names[1], zip(short, long, strict=False)))
    return Piece(
        min(one.start, two.start),
        max(one.end, two.end),
        one.tokens + two.tokens,
        long if shared == short else shared,
        "definition" if "definition" in (one.kind, two.kind) else one.kind,
        one.context,
    )

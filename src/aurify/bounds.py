"""The range of an option, written where the option is declared: `rank: PositiveInt = 16`, or
`dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0`. A text in the annotation is advice:
`Annotated[float, Gt(1), "3 is usual"]`.

Ge, Gt and the like resemble those of annotated_types, which comes with pydantic; a machine that only trains has
neither."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from aurify.errors import UserError


@dataclass(frozen=True)
class Bound:
    """`words` say it alone, `bracket` as an end of an interval."""

    limit: float
    admits: ClassVar[Any]  # a function of operator: (value, limit) -> bool
    words: ClassVar[str]
    bracket: ClassVar[str]


class Ge(Bound):
    admits, words, bracket = operator.ge, "at least", "["


class Gt(Bound):
    admits, words, bracket = operator.gt, "above", "("


class Le(Bound):
    admits, words, bracket = operator.le, "at most", "]"


class Lt(Bound):
    admits, words, bracket = operator.lt, "below", ")"


class Interval:
    """Several bounds at once: `Interval(ge=0, lt=1)`."""

    def __init__(
        self, *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
    ) -> None:
        lowest = [Ge(ge)] if ge is not None else [Gt(gt)] if gt is not None else []
        highest = [Le(le)] if le is not None else [Lt(lt)] if lt is not None else []
        self.bounds: list[Bound] = [*lowest, *highest]


PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]


class Checked:
    """A dataclass of options whose values must lie in the ranges of its annotations. A class with further checks calls
    `super().__post_init__()` first."""

    __slots__ = ()

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name, bounds, words in list_option_ranges(kind):
            value = getattr(self, name)
            if value is not None and not all(bound.admits(value, bound.limit) for bound in bounds):
                raise UserError(f"{name}: {value!r} is out of range; it must be {words}")


@cache
def list_option_ranges(cls: type) -> list[tuple[str, list[Bound], str]]:
    """(field, its bounds, range in words) of each field with a range."""
    found = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        notes = list(list_hint_notes(hint))
        bounds = [note for note in notes if isinstance(note, Bound)]
        if bounds:
            advice = [f"({note})" for note in notes if isinstance(note, str)]
            null = ["or null"] if type(None) in get_args(hint) else []
            found.append((name, bounds, " ".join([describe_range(bounds), *advice, *null])))
    return found


def list_hint_notes(hint: Any) -> Iterator[Any]:
    """Everything beside the type in `Annotated[...]`, also in `Annotated[...] | None`."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from list_hint_notes(part)
    for item in getattr(hint, "__metadata__", ()):
        yield from item.bounds if isinstance(item, Interval) else (item,)


def describe_range(bounds: Sequence[Bound]) -> str:
    """`at least 1`, `above 0` or `in [0, 1)`."""
    if len(bounds) == 1:
        return f"{bounds[0].words} {bounds[0].limit}"
    low, high = bounds
    return f"in {low.bracket}{low.limit}, {high.limit}{high.bracket}"

"""The range of an option, written where the option is declared: `rank: PositiveInt = 16`, or
`dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0`. A text in the annotation is advice:
`Annotated[float, Gt(1), "3 is usual"]`.

Ge, Gt and the like resemble those of annotated_types, which comes with pydantic; a machine that only trains has
neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from aurify.errors import UserError


@dataclass(frozen=True)
class Ge:
    ge: float


@dataclass(frozen=True)
class Gt:
    gt: float


@dataclass(frozen=True)
class Le:
    le: float


@dataclass(frozen=True)
class Lt:
    lt: float


class Interval:
    """Several bounds at once: `Interval(ge=0, lt=1)`."""

    def __init__(
        self, *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
    ) -> None:
        lowest = [Ge(ge)] if ge is not None else [Gt(gt)] if gt is not None else []
        highest = [Le(le)] if le is not None else [Lt(lt)] if lt is not None else []
        self.bounds: list[Ge | Gt | Le | Lt] = [*lowest, *highest]


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
        for name, low, high, words in ranges_in(kind):
            value = getattr(self, name)
            if value is not None and not (lies_above(low, value) and lies_below(high, value)):
                raise UserError(f"{name}: {value!r} is out of range; it must be {words}")


def lies_above(low: Ge | Gt | None, value: Any) -> bool:
    return low is None or bool(value >= low.ge if isinstance(low, Ge) else value > low.gt)


def lies_below(high: Le | Lt | None, value: Any) -> bool:
    return high is None or bool(value <= high.le if isinstance(high, Le) else value < high.lt)


@cache
def ranges_in(cls: type) -> list[tuple[str, Ge | Gt | None, Le | Lt | None, str]]:
    """(field, lower bound, upper bound, range in words) of each field with a range."""
    found = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        bounds = list(bounds_in(hint))
        low = next((bound for bound in bounds if isinstance(bound, (Ge, Gt))), None)
        high = next((bound for bound in bounds if isinstance(bound, (Le, Lt))), None)
        if low is not None or high is not None:
            advice = [f"({bound})" for bound in bounds if isinstance(bound, str)]
            null = ["or null"] if type(None) in get_args(hint) else []
            found.append((name, low, high, " ".join([describe_range(low, high), *advice, *null])))
    return found


def bounds_in(hint: Any) -> Iterator[Any]:
    """Everything beside the type in `Annotated[...]`, also in `Annotated[...] | None`."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from bounds_in(part)
    for item in getattr(hint, "__metadata__", ()):
        yield from item.bounds if isinstance(item, Interval) else (item,)


def describe_range(low: Ge | Gt | None, high: Le | Lt | None) -> str:
    """`at least 1`, `above 0` or `in [0, 1)`."""
    lowest = None if low is None else low.ge if isinstance(low, Ge) else low.gt
    highest = None if high is None else high.le if isinstance(high, Le) else high.lt
    if high is None:
        return f"{'at least' if isinstance(low, Ge) else 'above'} {lowest}"
    if low is None:
        return f"{'at most' if isinstance(high, Le) else 'below'} {highest}"
    return f"in {'[' if isinstance(low, Ge) else '('}{lowest}, {highest}{']' if isinstance(high, Le) else ')'}"

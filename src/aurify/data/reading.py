"""The rows of a source as a recipe describes it: where they are, how many are wanted, what is changed and left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from aurify.bounds import Checked, Interval, PositiveInt
from aurify.data.filters import apply_steps, step_of
from aurify.data.gsm8k import TIDIED
from aurify.data.named import check_dataset, load_dataset, named
from aurify.data.sources import Row, raising, source_rows
from aurify.data.tally import Tally
from aurify.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Part(Checked):
    """One source, alone or in a mixture."""

    path: str | None = None  # a file, a pattern such as data/*.jsonl, a folder, or owner/name of the hub
    dataset: str | dict[str, Any] | None = None  # registered by @aurify.dataset: a name, or {name: ..., options of it}
    weight: Annotated[float, Interval(gt=0, lt=float("inf"))] = 1.0  # in a mixture
    split: str = "train"  # of a data set of the hub, and of the files in a folder
    subset: str | None = None  # of a data set of the hub: what it calls its configuration
    max_rows: PositiveInt | None = None  # the first so many; those of the hub are then streamed
    form: str | None = None  # what `aurify data inspect` calls it; None: found by what is in the rows
    maps: list[str | dict[str, Any]] = field(default_factory=list)  # names, or {name: ..., options}
    filters: list[str | dict[str, Any]] = field(default_factory=list)  # applied after all maps

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("path", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"{' and '.join(given) or 'no source'} given; a part of a mixture has a path or a dataset")

    @property
    def name(self) -> str:
        return self.path if self.path is not None else f"the data set {named(self.dataset or '')[0]}"


def check_part(part: Part) -> None:
    """What can be seen without reading a row."""
    if part.dataset is not None:
        check_dataset(part.dataset)
    for entry in part.maps:
        step_of("map", entry)
    for entry in part.filters:
        step_of("filter", entry)


def iter_part(part: Part, tally: Tally, *, skip_bad: bool = False, number: int = 0) -> Iterator[Row]:
    """The rows of a source, as they are read. skip_bad: lines that cannot be parsed are counted in `tally`."""
    rows: Iterable[Row]
    if part.dataset is not None:
        rows = load_dataset(part.dataset)
    else:
        assert part.path is not None
        reject = tally.reject_unread if skip_bad else raising
        stream = part.max_rows is not None
        rows = source_rows(part.path, config=part.subset, split=part.split, stream=stream, reject=reject)
    read = counted(islice(rows, part.max_rows), tally)
    for row in apply_steps(read, part.maps, part.filters, tally):
        row.part = number
        yield row


def counted(rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    """The same rows; those that were changed on reading are counted."""
    for row in rows:
        if row.tidied:
            tally.tidied[TIDIED] += 1
        yield row


def read_part(part: Part, tally: Tally, *, skip_bad: bool = False, number: int = 0) -> list[Row]:
    rows = list(iter_part(part, tally, skip_bad=skip_bad, number=number))
    if not rows:
        reasons = "; ".join(tally.lines()) or "it has none"
        raise UserError(f"{part.name}: no row is left to train on ({reasons})")
    return rows

"""The rows of a source as a recipe describes it: where they are, how many are wanted, what is changed and left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from aurify import registry
from aurify.bounds import Checked, Interval, PositiveInt
from aurify.data.filters import apply_row_filters, resolve_row_filter
from aurify.errors import UserError
from aurify.rows.files import build_row
from aurify.rows.row import BadRow, Row, Tally
from aurify.rows.sources import NO_ROWS, open_rows, raise_bad_row
from aurify.signatures import call_with_options, convert_call_options, report_crashes, split_options


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
        return self.path if self.path is not None else f"the data set {split_options('dataset', self.dataset)[0]}"


def check_data_source(part: Part) -> None:
    """What can be seen without reading a row."""
    if part.dataset is not None:
        check_dataset(part.dataset)
    for entry in part.maps:
        resolve_row_filter("map", entry)
    for entry in part.filters:
        resolve_row_filter("filter", entry)


def read_data_source(part: Part, tally: Tally, *, skip_bad: bool = False, number: int = 0) -> list[Row]:
    """The rows of a source, `number` in its mixture. skip_bad: those that cannot be read are counted in `tally`."""
    entries = load_dataset(part.dataset) if part.dataset is not None else open_data_path(part)
    read: Iterable[Row] = islice(keep_good_rows(entries, tally, skip_bad), part.max_rows)
    rows = list(apply_row_filters(read, part.maps, part.filters, tally) if part.maps or part.filters else read)
    for row in rows:
        row.part = number
        tally.change(row.location, row.changes)
    if not rows:
        what = "is left to train on" if tally.filtered else "can be read"
        raise UserError(f"{part.name}: no row {what} ({'; '.join(tally.lines()) or NO_ROWS})")
    return rows


def open_data_path(part: Part) -> Iterable[Row | BadRow]:
    assert part.path is not None
    return open_rows(part.path, subset=part.subset, split=part.split, stream=part.max_rows is not None)


def keep_good_rows(entries: Iterable[Row | BadRow], tally: Tally, skip_bad: bool) -> Iterator[Row]:
    for entry in entries:
        if isinstance(entry, Row):
            yield entry
        elif skip_bad:
            tally.num_rows += 1
            tally.reject(entry.kind, str(entry), entry.option)
        else:
            raise entry


# ---------------------------------------------------------------------- rows of a person's own function


def load_dataset(entry: str | Mapping[str, Any]) -> list[Row]:
    """What a function registered by `@aurify.dataset` gives. A row's location is its number."""
    name, options = split_options("dataset", entry)
    function = registry.get_entry("dataset", name)
    result = call_with_options(f"dataset {name!r}", function, options)
    with report_crashes(f"dataset {name!r}", function):  # a generator runs, and fails, only now
        if isinstance(result, str | Mapping) or not hasattr(result, "__iter__"):
            raise UserError(f"dataset {name!r} gave a {type(result).__name__}; it must return rows, or yield them")
        rows = list(result)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"dataset {name!r}: row {number} is a {type(row).__name__}; a row is a mapping of columns to values"
            )
    if not rows:
        raise UserError(f"dataset {name!r} gave no rows")
    return [raise_bad_row(build_row(row, f"dataset {name!r}: row {number}")) for number, row in enumerate(rows, 1)]


def check_dataset(entry: str | Mapping[str, Any]) -> None:
    """What can be seen without calling the function: its name, and names and types of the options."""
    name, options = split_options("dataset", entry)
    convert_call_options(f"dataset {name!r}", registry.get_entry("dataset", name), options)

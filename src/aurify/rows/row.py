"""A row, the error that names it, and the count of what became of all rows: nothing is lost in silence."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aurify.config import did_you_mean
from aurify.errors import UserError

NANS = ("nan", "NaN", "NAN")  # what pandas writes as text for a missing value
SKIP = "data.on_bad_row: skip leaves such rows out and counts them"


class BadRow(UserError):
    """A row that cannot be used. Rows are counted by `kind`, the reason without what is particular to one row. option:
    what a recipe can say to mend all such rows."""

    def __init__(self, location: str, problem: str, kind: str = "", option: str = SKIP) -> None:
        super().__init__(f"{location}: {problem}")
        self.kind, self.option = kind or problem, option


class Row(dict[str, Any]):
    """A row with its location ("pairs.jsonl:17"), the number of its source in a mixture, and what reading changed."""

    def __init__(
        self, values: Mapping[str, Any], location: str = "", part: int = 0, changes: Iterable[str] = ()
    ) -> None:
        super().__init__(values)
        self.location, self.part, self.changes = location, part, list(changes)

    def bad(self, problem: str, kind: str = "", option: str = SKIP) -> BadRow:
        return BadRow(self.location, problem, kind, option)

    def need(self, column: str) -> Any:
        """The value of a column that must be there."""
        if column not in self:
            known = did_you_mean(column, map(str, self))
            renamed = f"maps: [{{name: rename, columns: {{OLD: {column}}}}}]"
            raise self.bad(f"no column {column!r}{known}", f"no column {column!r}", f"{renamed}, or {SKIP}")
        value = self[column]
        if is_missing_value(value):
            problem = f"column {column!r} is empty"
            raise self.bad(f"{problem} ({value!r}); fill it or remove the row", problem)
        return value

    def text(self, column: str) -> str:
        value = self.need(column)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) != float("inf"):
            return str(value)
        if not isinstance(value, str):
            raise self.bad(f"column {column!r} holds {type(value).__name__}; expected text")
        return value

    def number(self, column: str) -> float | None:
        """The finite number in a column. None: the column is empty or not there."""
        value = self.get(column)
        if value is None or is_missing_value(value):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not abs(number) < float("inf"):
            problem = f"column {column!r} is {str(value)[:40]!r}; expected a number"
            raise self.bad(problem, f"column {column!r} is no number")
        return number


def is_missing_value(value: Any) -> bool:
    """Nothing, nothing that anybody can see, or what pandas writes for it."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return value in NANS or not drop_invisible_characters(value).strip()
    return value is None or value == []


def drop_invisible_characters(text: str) -> str:
    """Without characters of no width."""
    return text if text.isascii() else "".join(letter for letter in text if unicodedata.category(letter) != "Cf")


@dataclass
class Tally:
    num_rows: int = 0  # rows that were looked at, rejected ones included
    rejected: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)  # by what reading did to them
    noted: Counter[str] = field(default_factory=Counter)  # worth a look, and trained as they are
    filtered: Counter[str] = field(default_factory=Counter)  # by the filter's name
    held_out: Counter[str] = field(default_factory=Counter)  # left out of training, by what holds their question out
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason of a rejection or a change -> the first row
    options: dict[str, str] = field(default_factory=dict)  # reason -> what a recipe can say to mend all such rows
    recognised: list[str] = field(default_factory=list)  # one line for each source

    def reject(self, reason: str, first: str, option: str = SKIP) -> None:
        self.rejected[reason] += 1
        self.first.setdefault(reason, first)
        self.options.setdefault(reason, option)

    def change(self, location: str, changes: Iterable[str]) -> None:
        """Counts what reading did to a row."""
        for change in changes:
            self.changed[change] += 1
            self.first.setdefault(change, location)

    def note(self, location: str, reason: str, option: str) -> None:
        self.noted[reason] += 1
        self.first.setdefault(reason, location)
        self.options.setdefault(reason, option)

    def add(self, other: Tally, prefix: str = "") -> None:
        self.num_rows += other.num_rows
        for name in ("rejected", "changed", "noted", "filtered", "held_out", "cut", "dropped"):
            mine, counts = getattr(self, name), getattr(other, name)
            mine.update({prefix + reason: num for reason, num in counts.items()})
        for known, texts in ((self.first, other.first), (self.options, other.options)):
            for reason, text in texts.items():
                known.setdefault(prefix + reason, text)
        self.recognised += [prefix + line for line in other.recognised]

    def lines(self) -> list[str]:
        """For the event log: what was left out or changed, one reason a line."""
        verbs = (
            (self.changed, "changed"),
            (self.noted, "noted"),
            (self.filtered, "left out by the filter"),
            (self.held_out, "left out of training, their questions are held out"),
            (self.cut, "cut"),
            (self.dropped, "dropped"),
        )
        lines = list(self.recognised)
        lines += [f"{count_rows(num)} {verb}: {reason}" for count, verb in verbs for reason, num in count.most_common()]
        lines += [
            f"{count_rows(num)} rejected: {reason} (the first: {self.first[reason]})"
            for reason, num in self.rejected.most_common()
        ]
        return lines


def count_rows(num: int) -> str:
    return f"{num:,} row" + ("" if num == 1 else "s")

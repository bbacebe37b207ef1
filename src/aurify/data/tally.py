"""What became of the rows: read, rejected, cut and dropped, each counted with its reason, so that nothing is lost in
silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from aurify.errors import UserError


class BadRow(UserError):
    """A row that cannot be used. `kind` is the reason without what is particular to the row: rows are counted by it."""

    def __init__(self, place: str, problem: str, kind: str = "") -> None:
        super().__init__(f"{place}: {problem}")
        self.kind = kind or problem


@dataclass
class Tally:
    num_rows: int = 0  # rows that were looked at, rejected ones included
    rejected: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)  # by the filter's name
    tidied: Counter[str] = field(default_factory=Counter)  # changed on reading, see aurify.data.gsm8k
    held_out: Counter[str] = field(default_factory=Counter)  # left out of training, by what holds their question out
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason of a rejection -> its first error
    recognised: list[str] = field(default_factory=list)  # one line for each source

    def reject(self, error: BadRow) -> None:
        self.rejected[error.kind] += 1
        self.first.setdefault(error.kind, str(error))

    def reject_unread(self, error: BadRow) -> None:
        """A line that never became a row."""
        self.num_rows += 1
        self.reject(error)

    def add(self, other: Tally, prefix: str = "") -> None:
        self.num_rows += other.num_rows
        for name in ("rejected", "filtered", "tidied", "held_out", "cut", "dropped"):
            mine, counts = getattr(self, name), getattr(other, name)
            mine.update({prefix + reason: num for reason, num in counts.items()})
        for reason, error in other.first.items():
            self.first.setdefault(prefix + reason, error)
        self.recognised += [prefix + line for line in other.recognised]

    def lines(self) -> list[str]:
        """For the event log: what was left out or changed, one reason a line."""
        lines = list(self.recognised)
        verbs = (
            (self.tidied, "changed"),
            (self.filtered, "left out by the filter"),
            (self.held_out, "left out of training, their questions are held out"),
            (self.cut, "cut"),
            (self.dropped, "dropped"),
        )
        for count, verb in verbs:
            lines += [f"{rows(num)} {verb}: {reason}" for reason, num in count.most_common()]
        lines += [
            f"{rows(num)} rejected: {reason} (the first: {self.first[reason]})"
            for reason, num in self.rejected.most_common()
        ]
        return lines


def rows(num: int) -> str:
    return f"{num:,} row" + ("" if num == 1 else "s")

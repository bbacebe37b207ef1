"""Which form the rows of a source are in: the one that most of the first rows have. File names say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.config import did_you_mean, list_names
from aurify.data.pairs import Pair
from aurify.data.shapes import FORMS, Chat, Columns, Example, Form, Label
from aurify.data.sources import Row
from aurify.errors import UserError
from aurify.types import Lesson

LOOKED_AT = 200
# what else a method can learn from: the chosen answers of pairs, and both sides of them as labels
ALSO: dict[Lesson, tuple[Lesson, ...]] = {
    "answers": ("answers", "pairs"),
    "pairs": ("pairs",),
    "labels": ("labels", "pairs"),
}
# rows in no known form are read as these, so that their errors name the column that is missing
FALLBACK: dict[Lesson, tuple[str, Columns]] = {
    "answers": ("messages", {"messages": "messages"}),
    "pairs": ("pairs", {"prompt": "prompt"}),
    "labels": ("labels", {"prompt": "prompt", "answer": "completion", "label": "label"}),
}
ONES = {"answers": "answers", "pairs": "preference pairs", "labels": "answers with labels"}


@dataclass(frozen=True)
class Detected:
    form: Form
    columns: Columns
    num: int  # rows in this form ...
    num_looked_at: int  # ... of so many
    lesson: Lesson  # what the rows shall become

    def read(self, row: Row) -> list[Example]:
        """One example of what the method learns from, or two where a pair becomes labels."""
        example = self.form.read(row, self.columns)
        if not isinstance(example, Pair) or self.lesson == "pairs":
            return [example]
        if self.lesson == "answers":
            return [Chat([*context(example.prompt), *example.chosen], example.tools)]
        return [
            Label(example.prompt, side, desirable, example.tools)
            for side, desirable in ((example.chosen, True), (example.rejected, False))
        ]

    def line(self) -> str:
        columns = ", ".join(dict.fromkeys(self.columns.values()))
        read_as = "" if self.form.holds == self.lesson else f", taken as {ONES[self.lesson]}"
        return f"{self.form.name!r}{f' (columns {columns})' if columns else ''}{read_as}"


def context(messages: Sequence[Any]) -> list[Any]:
    """The same messages, none of them trained."""
    return [{**message, "weight": 0.0} if message["role"] == "assistant" else message for message in messages]


def detect(rows: Sequence[Mapping[str, Any]], lesson: Lesson | None = None, name: str | None = None) -> Detected:
    """Finds out the form of a data set and which of its columns hold what: prompts, conversations, pairs, ...

    lesson: what is learned from; a form that holds just that comes before one that can be turned into it. name: the
    form is given, and only its columns are looked for."""
    looked_at = rows[:LOOKED_AT]
    if name is not None and name not in {form.name for form in FORMS}:
        raise UserError(f"unknown form of data {name!r}{did_you_mean(name, [form.name for form in FORMS])}")
    allowed = [form for form in FORMS if name in (None, form.name)]
    kinds = [[form for form in allowed if form.holds == holds] for holds in ALSO[lesson]] if lesson else [allowed]
    found = [one for one in (best(forms, looked_at) for forms in kinds) if one is not None]
    if found:
        most = max(num for _, _, num in found)
        form, columns, num = next(one for one in found if 2 * one[2] >= most)
        return Detected(form, columns, num, len(looked_at), lesson or form.holds)
    other = best(allowed, looked_at)
    place = getattr(rows[0], "place", "row 1") if rows else "the data"
    if other is not None and lesson and 2 * other[2] >= len(looked_at):
        raise UserError(
            f"{place}: the rows are {ONES[other[0].holds]} ({other[0].name!r}); this method learns from {ONES[lesson]}"
        )
    if lesson is None:
        names = list_names(map(str, rows[0])) if rows else "none"
        raise UserError(f"{place}: no known form of data; columns: {names}. docs/data.md lists the forms")
    fallback, columns = FALLBACK[lesson]
    form = next(form for form in FORMS if form.name == fallback)
    return Detected(form, columns, 0, len(looked_at), lesson)


def best(forms: Sequence[Form], rows: Sequence[Mapping[str, Any]]) -> tuple[Form, Columns, int] | None:
    """The form and columns that the most rows have; among equals, the more particular form. A form that a row has in
    other columns counts apart."""
    votes: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for row in rows:
        for form in forms:
            columns = form.find(row)
            if columns is not None:
                votes[form.name, tuple(columns.items())] += 1
                break  # one vote a row, for its most particular form
    if not votes:
        return None
    totals: Counter[str] = Counter()
    for (voted, _), count in votes.items():
        totals[voted] += count
    name, num = totals.most_common(1)[0]
    merged: Columns = {}
    for (voted, items), _ in votes.most_common():
        if voted == name:  # a column that only some rows fill, such as a system prompt
            merged = {**dict(items), **merged}
    return next(form for form in forms if form.name == name), merged, num

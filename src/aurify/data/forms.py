"""The forms that rows come in. A form is found by what is in a row, its columns and the kinds of their values, and says
which columns it reads; file names say nothing. A source is in the form that most of its first rows have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aurify.config import did_you_mean, list_names
from aurify.data import reading
from aurify.data.example import Chat, Example, Label, Pair, as_context
from aurify.data.reading import Columns, parse_label, read_rating
from aurify.data.transcripts import is_glaive, is_hh
from aurify.errors import UserError
from aurify.rows.columns import CHAT, COMPLETION, CONTEXT, PROMPT, SYSTEM, TEXT, find_column
from aurify.rows.row import BadRow, Row, Tally
from aurify.types import Lesson

Find = Callable[[Mapping[str, Any]], dict[str, str] | None]
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
NO_CHAT = ("prompt", "completion", "chosen", "rejected")


@dataclass(frozen=True)
class Form:
    name: str
    holds: Lesson
    find: Find  # the columns of a row in this form; None: it is in another one
    read: Callable[[Row, Columns], Example]


# ---------------------------------------------------------------------- what a row looks like


def find_objects(*keys: str) -> Find:
    """A column with a list of objects that have these keys, whatever it is called."""

    def find(row: Mapping[str, Any]) -> dict[str, str] | None:
        for name in (*CHAT, *row):
            value = row.get(name)
            entry = value[0] if isinstance(value, list) and value and name not in NO_CHAT else None
            if isinstance(entry, Mapping) and all(entry.get(key) is not None for key in keys):
                return {"messages": str(name), **system_column(row)}
        return None

    return find


def find_transcript(is_transcript: Callable[[Any], bool]) -> Find:
    def find(row: Mapping[str, Any]) -> dict[str, str] | None:
        column = next((str(name) for name, value in row.items() if is_transcript(value)), None)
        return {"messages": column, **system_column(row)} if column and "chosen" not in row else None

    return find


def system_column(row: Mapping[str, Any]) -> dict[str, str]:
    column = find_column(row, SYSTEM, str)
    return {"system": column} if column else {}


def find_alpaca(row: Mapping[str, Any]) -> dict[str, str] | None:
    if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str) or find_label(row):
        return None
    return {"prompt": "instruction", "answer": "output", "input": "input", **system_column(row)}


def find_answer(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Answers with labels are no answers to imitate: half of them are bad."""
    return None if find_label(row) else find_prompt_and_answer(row)


def find_label(row: Mapping[str, Any]) -> dict[str, str] | None:
    found = find_prompt_and_answer(row)
    return {**found, "label": "label"} if found and parse_label(row.get("label")) is not None else None


def find_prompt_and_answer(row: Mapping[str, Any]) -> dict[str, str] | None:
    prompt = find_column(row, PROMPT, str, list)
    answer = find_column(row, (name for name in COMPLETION if name != prompt), str, list, int, float)
    if prompt is None or answer is None or not is_said(row[answer]) or not is_said(row[prompt]):
        return None
    context = find_column(row, CONTEXT, str)
    return {"prompt": prompt, "answer": answer, **({"input": context} if context else {}), **system_column(row)}


def is_said(value: Any) -> bool:
    """Text or messages, and no other list."""
    return not isinstance(value, list) or (isinstance(value[0], Mapping) and "role" in value[0])


def find_pair(row: Mapping[str, Any]) -> dict[str, str] | None:
    prompt = "prompt" if "prompt" in row else find_column(row, PROMPT, str, list)
    if "chosen" not in row or "rejected" not in row or prompt is None:
        return None
    return {"prompt": prompt, **system_column(row)}


def both_sides(row: Mapping[str, Any], test: Callable[[Any], bool]) -> bool:
    return test(row.get("chosen")) and test(row.get("rejected"))


def find_implicit_pair(row: Mapping[str, Any]) -> dict[str, str] | None:
    prompted = find_column(row, PROMPT, str, list) is not None
    return {} if both_sides(row, lambda side: isinstance(side, str)) and not prompted else None


def find_dialogues(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Both sides are whole conversations: lists that do not begin with the assistant."""
    prompt = find_column(row, PROMPT, str, list)
    return ({"prompt": prompt} if prompt else {}) if both_sides(row, is_whole) else None


def is_whole(side: Any) -> bool:
    opened = isinstance(side, list) and side and isinstance(side[0], Mapping)
    return bool(opened) and side[0].get("role") != "assistant"


def find_rated(row: Mapping[str, Any]) -> dict[str, str] | None:
    entries, prompt = row.get("completions"), find_column(row, PROMPT, str)
    if not isinstance(entries, list) or len(entries) < 2 or prompt is None:
        return None
    rated = all(isinstance(entry, Mapping) and read_rating(entry) is not None for entry in entries)
    return {"prompt": prompt} if rated else None


def find_text(row: Mapping[str, Any]) -> dict[str, str] | None:
    column = find_column(row, TEXT, str)
    return {"text": column} if column else None


# the more particular forms come first: the first that most rows have is taken
FORMS = (
    Form("hh", "pairs", lambda row: {} if both_sides(row, is_hh) else None, reading.read_dialogues),
    Form("dialogue pairs", "pairs", find_dialogues, reading.read_dialogues),
    Form("pairs", "pairs", find_pair, reading.read_pair),
    Form("implicit pairs", "pairs", find_implicit_pair, reading.read_implicit_pair),
    Form("rated completions", "pairs", find_rated, reading.read_rated),
    Form("labels", "labels", find_label, reading.read_label),
    Form("messages", "answers", find_objects("role"), reading.read_chat),
    Form("sharegpt", "answers", find_objects("from", "value"), reading.read_chat),
    Form("capybara", "answers", find_objects("input", "output"), reading.read_chat),
    Form("glaive", "answers", find_transcript(is_glaive), reading.read_glaive_chat),
    Form("alpaca", "answers", find_alpaca, reading.read_answer),
    Form("prompt and answer", "answers", find_answer, reading.read_answer),
    Form("hh transcript", "answers", find_transcript(is_hh), reading.read_chat),
    Form("text", "answers", find_text, reading.read_text),
)

# ---------------------------------------------------------------------- the form of a source


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a source: their form, and what they become."""

    form: Form
    columns: Columns
    num: int  # rows in this form ...
    num_looked_at: int  # ... of so many
    lesson: Lesson  # what the rows shall become

    def read(self, row: Row) -> list[Example]:
        """One example of what the method learns from, or two where a pair becomes labels."""
        example = replace(self.form.read(row, self.columns), location=row.location, part=row.part)
        if not isinstance(example, Pair) or self.lesson == "pairs":
            return [example]
        shared: dict[str, Any] = {"tools": example.tools, "location": row.location, "part": row.part}
        if self.lesson == "answers":
            messages = [*as_context(example.prompt), *example.chosen]
            return [Chat(messages, len(example.prompt), **shared)]
        sides = ((example.chosen, True), (example.rejected, False))
        return [Label(example.prompt, side, desirable, **shared) for side, desirable in sides]

    def read_all(self, rows: Iterable[Row], tally: Tally, *, skip_bad: bool = False) -> list[Example]:
        """skip_bad: rows that cannot be used are counted; otherwise the first is an error."""
        examples: list[Example] = []
        for row in rows:
            tally.num_rows += 1
            try:
                examples += self.read(row)
            except BadRow as error:
                if not skip_bad:
                    raise
                tally.reject(error.kind, str(error))
        return examples

    def line(self) -> str:
        columns = ", ".join(dict.fromkeys(self.columns.values()))
        read_as = "" if self.form.holds == self.lesson else f", taken as {ONES[self.lesson]}"
        return f"{self.form.name!r}{f' (columns {columns})' if columns else ''}{read_as}"


def detect(rows: Sequence[Row], lesson: Lesson | None = None, name: str | None = None) -> Reader:
    """Finds out the form of a source and which of its columns hold what: prompts, conversations, pairs, ...

    lesson: what is learned from; a form that holds just that comes before one that can be turned into it. name: the
    form is given, and only its columns are looked for."""
    looked_at = rows[:LOOKED_AT]
    if name is not None and name not in {form.name for form in FORMS}:
        raise UserError(f"unknown form of data {name!r}{did_you_mean(name, [form.name for form in FORMS])}")
    allowed = [form for form in FORMS if name in (None, form.name)]
    kinds = [[form for form in allowed if form.holds == holds] for holds in ALSO[lesson]] if lesson else [allowed]
    found = [one for one in (vote(forms, looked_at) for forms in kinds) if one is not None]
    if found:
        most = max(num for _, _, num in found)
        form, columns, num = next(one for one in found if 2 * one[2] >= most)
        return Reader(form, columns, num, len(looked_at), lesson or form.holds)
    other = vote(allowed, looked_at)
    where = rows[0].location if rows else "the data"
    if other is not None and lesson and 2 * other[2] >= len(looked_at):
        held = f"{ONES[other[0].holds]} ({other[0].name!r})"
        raise UserError(f"{where}: the rows are {held}; this method learns from {ONES[lesson]}")
    if lesson is None:
        names = list_names(map(str, rows[0])) if rows else "none"
        raise UserError(f"{where}: no known form of data; columns: {names}. docs/data.md lists the forms")
    fallback, columns = FALLBACK[lesson]
    form = next(form for form in FORMS if form.name == fallback)
    return Reader(form, columns, 0, len(looked_at), lesson)


def vote(forms: Sequence[Form], rows: Sequence[Row]) -> tuple[Form, Columns, int] | None:
    """The form that the most rows have, its columns and the number of these rows; among equals, the more particular
    form. A row votes once, for its most particular form."""
    votes: Counter[str] = Counter()
    columns: dict[str, Counter[tuple[tuple[str, str], ...]]] = {}
    for row in rows:
        for form in forms:
            if (found := form.find(row)) is not None:
                votes[form.name] += 1
                columns.setdefault(form.name, Counter())[tuple(found.items())] += 1
                break
    if not votes:
        return None
    form = max(forms, key=lambda form: votes[form.name])
    merged: dict[str, str] = {}
    for items, _ in columns[form.name].most_common():
        merged = {**dict(items), **merged}  # also a column that only some rows fill, such as a system prompt
    return form, merged, votes[form.name]

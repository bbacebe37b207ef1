"""The forms that rows come in. A row's form is found by its columns and the kinds of their values, never by a file's
name; a source is in the form that most of its first rows have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from aurify.config import did_you_mean, join_names
from aurify.data import reading
from aurify.data.example import Chat, Example, Label, Pair, as_untrained_messages
from aurify.data.messages import SAID, SPEAKER, read_chat_role
from aurify.data.prompts import Columns
from aurify.data.reading import DROP_LABEL, check_columns_read, parse_label_value, read_completion_rating
from aurify.data.transcripts import is_glaive, is_transcript, read_hh
from aurify.errors import UserError
from aurify.rows.columns import (
    CHAT,
    COMPLETION,
    CONTEXT,
    HISTORY,
    LABEL,
    PROMPT,
    SYSTEM,
    TEXT,
    THOUGHT,
    TOOLS,
    find_column,
)
from aurify.rows.row import SKIP, BadRow, Row, Tally, is_missing_value
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
BESIDE = ("input", "system", "history")  # parts that a row may lack
WRONG_LESSON = "what the row holds is nothing that this method learns from"
# one look tells them
WHOLE = ("hh", "dialogue pairs", "messages", "sharegpt", "capybara", "glaive", "hh transcript", "transcript", "calls")
SIDES = ("prompt", "completion", "chosen", "rejected")  # columns that are no whole chat


@dataclass(frozen=True)
class Form:
    name: str
    holds: Lesson
    read: Callable[[Row, Columns], Example]


FORMS = {
    form.name: form
    for form in (
        Form("hh", "pairs", reading.read_dialogue_pair),
        Form("dialogue pairs", "pairs", reading.read_dialogue_pair),
        Form("pairs", "pairs", reading.read_pair_example),
        Form("implicit pairs", "pairs", reading.read_implicit_pair),
        Form("rated completions", "pairs", reading.read_rated_pair),
        Form("labels", "labels", reading.read_label_example),
        Form("messages", "answers", reading.read_chat_example),
        Form("sharegpt", "answers", reading.read_chat_example),
        Form("capybara", "answers", reading.read_chat_example),
        Form("glaive", "answers", reading.read_glaive_example),
        Form("alpaca", "answers", reading.read_answer_example),
        Form("prompt and answer", "answers", reading.read_answer_example),
        Form("calls", "answers", reading.read_call_example),
        Form("hh transcript", "answers", reading.read_chat_example),
        Form("transcript", "answers", reading.read_chat_example),
        Form("text", "answers", reading.read_text_example),
    )
}

# ---------------------------------------------------------------------- what a row looks like


def find_row_forms(row: Mapping[str, Any]) -> Iterator[tuple[str, Columns]]:
    """All forms that a row fits, the most particular one first, each with the columns that it reads."""
    label, chats = find_label_columns(row), find_chat_columns(row)
    open_chat = next((column for column in chats.values() if is_open_chat(row[column])), None)
    prompt = find_column(row, PROMPT, str, list) or open_chat
    system, history = find_column(row, SYSTEM, str), find_column(row, HISTORY, list, str)
    beside = {part: column for part, column in (("system", system), ("history", history)) if column}
    if "chosen" in row and "rejected" in row:
        yield from find_pair_columns(row, prompt, next(iter(chats.values()), None), beside)
    if prompt and isinstance(row[prompt], str) and are_rated_completions(row.get("completions")):
        yield "rated completions", {"prompt": prompt}
    if not label:  # a whole chat tells more than its first question and answer beside it
        yield from ((n, {"messages": c, **beside}) for n, c in chats.items() if c in CHAT and is_answered_chat(row[c]))
    answer = find_column(row, (name for name in COMPLETION if name != prompt), str, list, dict, int, float)
    if prompt and answer and is_chat_or_text(row[prompt]) and is_chat_or_text(row[answer]):
        context = {"input": column} if (column := find_column(row, CONTEXT, str)) else {}
        both = {"prompt": prompt, "answer": answer, **context, **beside}
        if label:
            yield "labels", {**both, "label": label}
        elif isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
            yield "alpaca", {**beside, "prompt": "instruction", "answer": "output", "input": "input"}
        else:  # with labels they are no answers to imitate: half of them are bad
            yield "prompt and answer", both
    elif prompt and reading.read_calls_column(row.get("answers")):
        yield "calls", {"prompt": prompt, "calls": "answers", **beside}
    for name, column in chats.items():
        if label:
            yield "labels", {"messages": column, "label": label, **beside}
        elif "chosen" not in row or not is_open_chat(row[column]):
            yield name, {"messages": column, **beside}
    if column := find_matching_column(row, is_glaive):
        yield "glaive", {"messages": column, **beside}
    if "chosen" not in row and (column := find_matching_column(row, read_hh)) and column != prompt:
        yield "hh transcript", {"messages": column}
    if column := find_column(row, TEXT, str):
        if is_transcript(row[column]):
            yield "transcript", {"messages": column}
        yield "text", {"text": column}


def find_pair_columns(
    row: Mapping[str, Any], prompt: str | None, chat: str | None, beside: Columns
) -> Iterator[tuple[str, Columns]]:
    chosen, rejected = row["chosen"], row["rejected"]
    if is_transcript(chosen) and is_transcript(rejected):
        yield "hh", {}
    if is_whole_chat(chosen) and is_whole_chat(rejected):
        yield "dialogue pairs", {**({"prompt": prompt} if prompt else {}), **beside}
    if asked := "prompt" if "prompt" in row else prompt or chat:
        yield "pairs", {"prompt": asked, **beside}
    elif isinstance(chosen, str) and isinstance(rejected, str):
        yield "implicit pairs", {}


def find_label_columns(row: Mapping[str, Any]) -> str | None:
    column = find_column(row, LABEL, bool, int, float, str)
    return column if column and parse_label_value(row[column]) is not None else None


def find_chat_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Form -> column with a list of turns: a usual one, or the only one there is. Of two, such as conversation_a and
    conversation_b, nobody knows which one is good."""
    forms = {str(name): form for name, value in row.items() if name not in SIDES and (form := find_turn_form(value))}
    usual = [name for name in CHAT if name in forms]
    others = [name for name in forms if forms[name] != "capybara"]
    names = usual or (others if len(others) == 1 else [])
    return {forms[name]: name for name in reversed(names)}


def find_turn_form(value: Any) -> str:
    """In which form the first entry of a list is a turn of a conversation."""
    entry = value[0] if isinstance(value, list) and value else None
    if not isinstance(entry, Mapping):
        return ""
    if all(entry.get(key) is not None for key in ("input", "output")):
        return "capybara"
    speaker = next((key for key in SPEAKER if entry.get(key) is not None), "")
    if speaker == "from":
        return "sharegpt" if any(entry.get(key) is not None for key in SAID) else ""
    return "messages" if speaker else ""


def find_matching_column(row: Mapping[str, Any], test: Callable[[Any], object]) -> str | None:
    return next((str(name) for name, value in row.items() if test(value)), None)


def is_chat_or_text(value: Any) -> bool:
    """Text, a message or messages, and no other list."""
    entry = value[0] if isinstance(value, list) else value
    return not isinstance(value, list | dict) or (isinstance(entry, Mapping) and ("role" in entry or "from" in entry))


def is_open_chat(chat: Sequence[Any]) -> bool:
    """It ends with a question."""
    last = chat[-1] if isinstance(chat[-1], Mapping) else {}
    return read_chat_role(last) == "user"


def is_answered_chat(chat: Sequence[Any]) -> bool:
    """An answer stands in it, and it does not end with a question."""
    said = any(isinstance(turn, Mapping) and (read_chat_role(turn) == "assistant" or "output" in turn) for turn in chat)
    return said and not is_open_chat(chat)


def is_whole_chat(side: Any) -> bool:
    """A whole conversation: a list that does not begin with the assistant."""
    opened = isinstance(side, list) and side and isinstance(side[0], Mapping)
    return bool(opened) and read_chat_role(side[0]) != "assistant"


def are_rated_completions(entries: Any) -> bool:
    several = isinstance(entries, list) and len(entries) > 1
    return several and all(
        isinstance(entry, Mapping) and read_completion_rating(entry) is not None for entry in entries
    )


# ---------------------------------------------------------------------- the form of a source


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a source."""

    form: Form
    columns: Columns
    num: int  # rows in this form ...
    num_looked_at: int  # ... of so many
    lesson: Lesson  # what the rows shall become
    given: bool = False  # the form was given, so no row is read in another one

    def read(self, row: Row) -> list[Example]:
        """One example of what the method learns from, or two where a pair becomes labels."""
        form, columns = self.choose(row)
        check_columns_read(row, columns)
        example = replace(form.read(row, columns), location=row.location, part=row.part)
        if not isinstance(example, Pair) or self.lesson == "pairs":
            return [example]
        shared: dict[str, Any] = {"tools": example.tools, "location": row.location, "part": row.part}
        if self.lesson == "answers":
            messages = [*as_untrained_messages(example.prompt), *example.chosen]
            return [Chat(messages, len(example.prompt), **shared)]
        sides = ((example.chosen, True), (example.rejected, False))
        return [Label(example.prompt, side, desirable, **shared) for side, desirable in sides]

    def choose(self, row: Row) -> tuple[Form, Columns]:
        """The form of the source; or the row's own, where it lacks columns of that and has others instead."""
        fitting: dict[str, Columns] = {}
        for name, columns in find_row_forms(row):
            fitting.setdefault(name, columns)
        useful = [name for name in fitting if FORMS[name].holds in ALSO[self.lesson]]
        if not useful and self.columns.get("label") in row:
            return self.form, self.columns  # a label that is none is named
        if not self.given and fitting and (not useful or ("labels" in fitting and self.lesson == "answers")):
            name = "labels" if "labels" in fitting else next(iter(fitting))
            problem = (
                f"the row is one of {ONES[FORMS[name].holds]} ({name!r}); this method learns from {ONES[self.lesson]}"
            )
            drop = DROP_LABEL.format(label=fitting[name].get("label"))
            raise row.bad(problem, WRONG_LESSON, drop if name == "labels" else SKIP)
        if self.given or not useful or not any(row.get(column) is None for column in self.needed()):
            return self.form, self.columns
        name, columns = useful[0], fitting[useful[0]]
        if name not in WHOLE and set(columns.values()) <= set(self.columns.values()):
            return self.form, self.columns  # a row of this form with something missing: the error names it
        row.changes.append(f"read as {name!r}, unlike most rows of the source")
        return FORMS[name], columns

    def needed(self) -> list[str]:
        sides = ["chosen", "rejected"] if self.form.holds == "pairs" and self.form.name != "rated completions" else []
        return [column for part, column in self.columns.items() if part not in BESIDE] + sides

    def unread(self, rows: Iterable[Row]) -> list[str]:
        """Columns that hold something and that nobody reads, in whatever form a row is read."""
        names: set[str] = set()
        for row in rows:
            num_changes = len(row.changes)
            with suppress(BadRow):  # what is no row to learn from is told when it is read
                form, columns = self.choose(row)
                own = replace(self, form=form, columns=columns)
                read = {*columns.values(), *own.needed(), *TOOLS, "completions", "margin"}
                read |= {*THOUGHT} if "answer" in columns else set()
                names |= {str(name) for name, value in row.items() if not is_missing_value(value)} - read
            del row.changes[num_changes:]
        return sorted(names)

    def read_all(self, rows: Iterable[Row], tally: Tally, *, skip_bad: bool = False) -> list[Example]:
        """skip_bad: rows that cannot be used are counted; otherwise the first is an error."""
        examples: list[Example] = []
        for row in rows:
            tally.num_rows += 1
            num_changes = len(row.changes)
            try:
                examples += self.read(row)
                tally.change(row.location, row.changes[num_changes:])
            except BadRow as error:
                if not skip_bad:
                    raise
                tally.reject(error.kind, str(error), error.option)
        return examples

    def line(self) -> str:
        both = ("chosen", "rejected") if self.form.read is reading.read_pair_example else ()
        columns = ", ".join(dict.fromkeys([*self.columns.values(), *both]))
        read_as = "" if self.form.holds == self.lesson else f", taken as {ONES[self.lesson]}"
        return f"{self.form.name!r}{f' (columns {columns})' if columns else ''}{read_as}"


def detect_row_form(rows: Sequence[Row], lesson: Lesson | None = None, name: str | None = None) -> Reader:
    """Finds out the form of a source and which of its columns hold what: prompts, conversations, pairs, ...

    lesson: what is learned from; a form that holds just that comes before one that can be turned into it. name: the
    form is given, and only its columns are looked for."""
    looked_at = rows[:LOOKED_AT]
    if name is not None and name not in FORMS:
        raise UserError(f"unknown form of data {name!r}{did_you_mean(name, FORMS)}")
    allowed = [form for form in FORMS.values() if name in (None, form.name)]
    kinds = [[form for form in allowed if form.holds == holds] for holds in ALSO[lesson]] if lesson else [allowed]
    found = [one for one in (vote_on_form(forms, looked_at) for forms in kinds) if one is not None]
    if found:
        most = max(num for _, _, num in found)
        form, columns, num = next(one for one in found if 2 * one[2] >= most)
        return Reader(form, columns, num, len(looked_at), lesson or form.holds, given=name is not None)
    other = vote_on_form(allowed, looked_at)
    where = rows[0].location if rows else "the data"
    if other is not None and lesson and 2 * other[2] >= len(looked_at):
        held = f"{ONES[other[0].holds]} ({other[0].name!r})"
        mend = f". {DROP_LABEL.format(label=other[1].get('label'))}" if other[0].holds == "labels" else ""
        raise UserError(f"{where}: the rows are {held}; this method learns from {ONES[lesson]}{mend}")
    if lesson is None:
        raise UserError(f"{where}: {explain_unknown_form(rows[0] if rows else {})}")
    fallback, columns = FALLBACK[lesson]
    return Reader(FORMS[fallback], columns, 0, len(looked_at), lesson)


def explain_unknown_form(row: Mapping[str, Any]) -> str:
    if find_column(row, PROMPT, str, list):
        return (
            "prompts without answers, from which nothing can be imitated; they are tasks of a method that samples its "
            "own answers, such as grpo (task: {name: jsonl, path: ...})"
        )
    names = join_names(f"{name} ({type(value).__name__})" for name, value in row.items())
    return (
        f"no known form of data; columns: {names or 'none'}. docs/data.md lists the forms; give a column the name that "
        "it has there, with maps: [{name: rename, columns: {OLD: NEW}}]"
    )


def vote_on_form(forms: Sequence[Form], rows: Sequence[Row]) -> tuple[Form, Columns, int] | None:
    """The form that the most rows have, its columns and the number of these rows. A row votes for its most particular
    form."""
    names = {form.name for form in forms}
    votes: Counter[str] = Counter()
    columns: dict[str, Counter[tuple[tuple[str, str], ...]]] = {name: Counter() for name in names}
    for row in rows:
        name, found = next((one for one in find_row_forms(row) if one[0] in names), ("", {}))
        if name:
            votes[name] += 1
            columns[name][tuple(found.items())] += 1
    if not votes:
        return None
    form = max(forms, key=lambda form: votes[form.name])
    [most, *others] = (dict(items) for items, _ in columns[form.name].most_common())
    beside = {part: column for items in others for part, column in items.items() if part in BESIDE}
    return form, {**beside, **most}, votes[form.name]

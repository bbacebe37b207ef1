"""From a stage's `data` to units that the offline loop trains on, and to units held out for evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aurify.data.detect import LOOKED_AT, Detected, detect
from aurify.data.formats import Encoding, encode_rows
from aurify.data.heldout import normal_form, question_keys
from aurify.data.mixing import Mixture
from aurify.data.pairs import Pair
from aurify.data.reading import read_part
from aurify.data.shapes import Chat, Example, Label, Text
from aurify.data.sources import Row
from aurify.data.tally import Tally
from aurify.errors import UserError
from aurify.files import replace_text
from aurify.loops.offline import Unit
from aurify.loops.progress import derive_seed
from aurify.pipeline.recipe import DataOptions, OfflineStage
from aurify.types import Datum, Lesson, Message

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet

PLAIN = ("messages", "pairs", "labels")  # forms that need no mention: they are what Aurify itself writes
PAIRS_FILE, HELDOUT_FILE = "pairs.jsonl", "heldout_pairs.jsonl"


@dataclass(frozen=True)
class Rows:
    train: Sequence[Row]
    heldout: Sequence[Row] = ()
    tally: Tally = field(default_factory=Tally)  # lines that never became rows, and rows that filters left out


@dataclass(frozen=True)
class Examples:
    train: list[Unit]
    heldout: list[Unit]
    num_dropped: int  # training units above the length limit
    tally: Tally = field(default_factory=Tally)
    mixture: Mixture | None = None  # the order of `train`, where it comes from several sources


def rows_of_file(data: DataOptions, seed: int, *, hold_out: bool) -> Rows:
    """The rows of a user's files or functions. hold_out: without `heldout_path`, a share of them is kept for
    evaluation."""
    tally, skip = Tally(), data.on_bad_row == "skip"
    rows = [row for n, part in enumerate(data.parts) for row in read_part(part, tally, skip_bad=skip, number=n)]
    if data.heldout_part is not None:
        return Rows(rows, read_part(data.heldout_part, tally, skip_bad=skip), tally)
    forms = [part.form for part in data.parts]
    return replace(split(rows, data.heldout_share, seed, forms), tally=tally) if hold_out else Rows(rows, (), tally)


def split(rows: Sequence[Row], share: float, seed: int, forms: Sequence[str | None] = ()) -> Rows:
    """Rows with the same question stay on one side: a held-out question is one that training never saw. The same rows
    are split in the same way wherever they are, for the seed alone decides."""
    keys = row_keys(rows, forms)
    questions = sorted(set(keys))
    random.Random(derive_seed(seed, "heldout")).shuffle(questions)
    chosen = set(questions[: int(len(questions) * share)])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return Rows(train, [row for row, key in zip(rows, keys, strict=True) if key in chosen])


def row_keys(rows: Sequence[Row], forms: Sequence[str | None] = ()) -> list[str]:
    """What each row asks, in normal form. A row that cannot be read stands for itself."""
    examples = read_examples(rows, None, forms)
    prompts = [asked(example) for example in examples if example is not None and not isinstance(example, Text)]
    questions = iter(question_keys(prompts))
    return [
        row.place or json.dumps(row, default=str)
        if example is None
        else normal_form(example.text)
        if isinstance(example, Text)
        else next(questions)[0]
        for row, example in zip(rows, examples, strict=True)
    ]


def read_examples(
    rows: Sequence[Row], lesson: Lesson | None = None, forms: Sequence[str | None] = ()
) -> list[Example | None]:
    """What each row holds, before any of it becomes tokens; None where it cannot be read. forms: of each source."""
    detected: dict[int, Detected | None] = {}
    for number, inside in by_part(rows).items():
        try:
            form = forms[number] if number < len(forms) else None
            detected[number] = detect([rows[k] for k in inside[:LOOKED_AT]], lesson, form)
        except UserError:
            detected[number] = None
    return [read_example(row, detected[row.part]) for row in rows]


def read_example(row: Row, found: Detected | None) -> Example | None:
    try:
        return found.form.read(row, found.columns) if found else None
    except UserError:
        return None


def prompts_of(examples: Sequence[Example | None]) -> tuple[list[list[Message]], list[str]]:
    """What the examples ask, and the texts among them."""
    prompts = [asked(example) for example in examples if example is not None and not isinstance(example, Text)]
    return prompts, [example.text for example in examples if isinstance(example, Text)]


def asked(example: Chat | Pair | Label) -> list[Message]:
    """What comes before the first answer, or before the answers that are compared."""
    if not isinstance(example, Chat):
        return example.prompt
    roles = [message["role"] for message in example.messages]
    return example.messages[: roles.index("assistant")] if "assistant" in roles else example.messages


def by_part(rows: Sequence[Row]) -> dict[int, list[int]]:
    """The indices of the rows of each source."""
    parts: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        parts.setdefault(getattr(row, "part", 0), []).append(index)
    return parts


def rows_of_demonstrations(taskset: TaskSet, num: int, seed: int) -> Rows:
    """Training tasks with the answer that the task itself would give."""
    offered = {"tools": list(taskset.tools)} if taskset.tools else {}
    answered = ((task, taskset.demonstration(task)) for task in taskset.train(derive_seed(seed, "demonstrations")))
    rows = [
        Row({"messages": [*task.prompt, *as_messages(answer)]} | offered, f"task {task.id}")
        for task, answer in islice(answered, num)
        if answer is not None
    ]
    if not rows:
        raise UserError(f"task {taskset.name!r}: there is no training task with an answer to demonstrate")
    return Rows(rows)


def as_messages(answer: str | list[Message]) -> list[Message]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def encode_examples(
    rows: Rows, stage: OfflineStage, renderer: Renderer, *, lesson: Lesson, limit: int, seed: int = 0
) -> Examples:
    """Tokens. What is above `limit` (or the stage's own max_length) is an error that names the row, or is cut or
    dropped; what becomes of every row is counted."""
    limit = min(stage.max_length or limit, limit)
    parts, mixing = stage.data.parts, stage.data.mix is not None
    tally, sources = Tally(), list[list[Unit]]()
    tally.add(rows.tally)
    for number, inside in sorted(by_part(rows.train).items()):
        form = parts[number].form if number < len(parts) else None
        options = replace(encoding(stage, lesson, limit), form=form)
        encoded = encode_rows([rows.train[k] for k in inside], renderer, options)
        name = f"{parts[number].name}: " if mixing else "data: "
        found = encoded.detected
        if found is not None and (found.form.name not in PLAIN or found.form.holds != lesson):
            tally.recognised.append(f"{name}recognised as {found.line()}")
        tally.add(encoded.tally)
        if not encoded.units:
            reasons = "; ".join(encoded.tally.lines())
            raise UserError(
                f"data: none of the {len(inside)} rows fits into {limit} tokens; raise max_length"
                if not encoded.tally.rejected
                else f"{name}none of the {len(inside)} rows can be used: {reasons}"
            )
        sources.append(encoded.units)
    heldout: list[Unit] = []
    for inside in by_part(rows.heldout).values():
        options = replace(encoding(stage, lesson, limit), overlong="drop")  # a number is taken of whole rows
        encoded = encode_rows([rows.heldout[k] for k in inside], renderer, options)
        tally.add(encoded.tally, "held out: ")
        heldout += encoded.units
    train = [unit for source in sources for unit in source]
    mixture = None
    if mixing:
        sizes = [[sum(len(datum.tokens) for datum in unit) for unit in source] for source in sources]
        weights = [part.weight for part in parts]
        mixture = Mixture(sizes, weights, stage.data.mix_by, stage.data.mix_stop, seed)
    num_dropped = sum(num for reason, num in tally.dropped.items() if not reason.startswith("held out"))
    return Examples(train, heldout, num_dropped, tally, mixture)


def encoding(stage: OfflineStage, lesson: Lesson, limit: int) -> Encoding:
    return Encoding(
        lesson=lesson,
        train_on=stage.train_on,
        limit=limit,
        overlong=stage.overlong,
        on_bad_row=stage.data.on_bad_row,
    )


def first_datum(rows: Rows, stage: OfflineStage, renderer: Renderer, lesson: Lesson) -> Datum | None:
    """The first row that can be used, for a look; what is wrong with others is told when the stage begins."""
    part, options = stage.data.parts[0], replace(encoding(stage, lesson, 0), limit=None)
    first = [row for row in rows.train[:LOOKED_AT] if row.part == 0]
    options = replace(options, form=part.form)
    units = encode_rows(first if options.on_bad_row == "skip" else first[:1], renderer, options).units
    return units[0][0] if units else None


def saved_pairs(folder: Path) -> Rows | None:
    """The pairs that a stage has sampled: a resumed run, or a later stage, takes the very same."""
    if not (folder / PAIRS_FILE).exists():
        return None
    return Rows(read_rows(folder / PAIRS_FILE), read_rows(folder / HELDOUT_FILE))


def save_pairs(folder: Path, rows: Rows) -> None:
    """The training pairs come last: where they are, both files are complete."""
    for name, part in ((HELDOUT_FILE, rows.heldout), (PAIRS_FILE, rows.train)):
        replace_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))


def read_rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also split at U+2028 inside a text
    return [Row(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, 1) if line]

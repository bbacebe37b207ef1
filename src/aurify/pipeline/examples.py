"""From a stage's `data` to units that the offline loop trains on, and to units held out for evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aurify.data.encode import Encoding, Unit, encode
from aurify.data.example import Chat, Example
from aurify.data.forms import detect_row_form
from aurify.data.heldout import example_keys
from aurify.data.mixing import Mixture
from aurify.data.sources import Part, read_data_source
from aurify.environments.traces import list_answer_messages
from aurify.errors import UserError
from aurify.loops.progress import derive_seed
from aurify.pipeline.recipe import DataOptions, OfflineStage
from aurify.rows.row import Row, Tally
from aurify.rows.sources import open_file_rows, raise_bad_row
from aurify.tracking.jsonl import write_log
from aurify.types import Lesson

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet

PLAIN = ("messages", "pairs", "labels")  # forms that need no mention: they are what Aurify itself writes
PAIRS_FILE, HELDOUT_FILE = "pairs.jsonl", "heldout_pairs.jsonl"


@dataclass(frozen=True)
class Examples:
    """What the rows of a stage hold, before any of it becomes tokens."""

    train: Sequence[Example]
    heldout: Sequence[Example] = ()
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Units:
    """The same in tokens."""

    train: list[Unit]
    heldout: list[Unit]
    num_dropped: int  # training units above the length limit
    tally: Tally
    mixture: Mixture | None = None  # the order of `train`, where it comes from several sources


# ---------------------------------------------------------------------- where examples come from


def read_stage_examples(data: DataOptions, lesson: Lesson, seed: int, *, hold_out: bool) -> Examples:
    """Those of a user's files or functions. hold_out: without `heldout_path`, a share of them is kept for
    evaluation."""
    tally, skip = Tally(), data.on_bad_row == "skip"
    train: list[Example] = []
    for number, part in enumerate(data.parts):
        name = part.name if data.mix else "data"
        train += read_stage_source(part, lesson, tally, name, skip_bad=skip, number=number)
    if data.heldout_part is not None:
        apart = Tally()
        heldout = read_stage_source(data.heldout_part, lesson, apart, "data.heldout_path", skip_bad=skip)
        tally.add(replace(apart, recognised=[]), "held out: ")
        return Examples(train, heldout, tally)
    return (
        replace(split_stage_examples(train, data.heldout_share, seed), tally=tally)
        if hold_out
        else Examples(train, (), tally)
    )


def read_stage_source(
    part: Part, lesson: Lesson, tally: Tally, name: str, *, skip_bad: bool, number: int = 0
) -> list[Example]:
    rows = read_data_source(part, tally, skip_bad=skip_bad, number=number)
    reader, unusable = detect_row_form(rows, lesson, part.form), Tally()
    if reader.form.name not in PLAIN or reader.form.holds != lesson:
        tally.recognised.append(f"{name}: recognised as {reader.line()}")
    examples = reader.read_all(rows, unusable, skip_bad=skip_bad)
    if not examples:
        raise UserError(f"{name}: none of the {len(rows)} rows can be used: {'; '.join(unusable.lines())}")
    tally.add(unusable)
    return examples


def split_stage_examples(examples: Sequence[Example], share: float, seed: int) -> Examples:
    """Examples with the same question stay on one side: a held-out question is one that training never saw. The same
    rows are split in the same way wherever they are, for the seed alone decides."""
    keys = example_keys(examples)
    questions = sorted(set(keys))
    random.Random(derive_seed(seed, "heldout")).shuffle(questions)
    chosen = set(questions[: int(len(questions) * share)])
    sides: dict[bool, list[Example]] = {False: [], True: []}
    for example, key in zip(examples, keys, strict=True):
        sides[key in chosen].append(example)
    return Examples(sides[False], sides[True])


def demonstrate_stage_tasks(taskset: TaskSet, num: int, seed: int) -> Examples:
    """Training tasks with the answer that the task itself would give."""
    answered = ((task, taskset.demonstration(task)) for task in taskset.train(derive_seed(seed, "demonstrations")))
    examples = [
        Chat(
            [*task.prompt, *list_answer_messages(answer, taskset.environment)],
            tools=list(taskset.tools),
            location=f"task {task.id}",
        )
        for task, answer in islice(answered, num)
        if answer is not None
    ]
    if not examples:
        raise UserError(f"task {taskset.name!r}: there is no training task with an answer to demonstrate")
    return Examples(examples)


def load_stage_pairs(folder: Path) -> Examples | None:
    """The pairs that a stage has sampled: a resumed run, or a later stage, takes the very same."""
    if not (folder / PAIRS_FILE).exists():
        return None
    train, heldout = (list(map(raise_bad_row, open_file_rows(folder / name))) for name in (PAIRS_FILE, HELDOUT_FILE))
    reader = detect_row_form(train, "pairs", "pairs")
    return Examples(reader.read_all(train, Tally()), reader.read_all(heldout, Tally()))


def save_stage_pairs(folder: Path, train: Sequence[Row], heldout: Sequence[Row]) -> None:
    """The training pairs come last: where they are, both files are complete."""
    for name, rows in ((HELDOUT_FILE, heldout), (PAIRS_FILE, train)):
        write_log(folder / name, rows)


# ---------------------------------------------------------------------- tokens


def encode_stage_examples(
    examples: Examples,
    stage: OfflineStage,
    renderer: Renderer,
    *,
    limit: int,
    vocabulary: int | None = None,
    seed: int = 0,
    watch: Callable[[Sequence[Example]], Iterable[Example]] = iter,
) -> Units:
    """What is above `limit` (or the stage's own max_length) is an error that names the row, or is cut or dropped; what
    becomes of every row is counted. vocabulary: rows of the model's embedding. watch: sees the examples pass."""
    options = replace(choose_stage_encoding(stage, limit), vocabulary=vocabulary)
    parts, tally = stage.data.parts, Tally()
    tally.add(examples.tally)
    sources: list[list[Unit]] = []
    for number in sorted({example.part for example in examples.train}):
        inside = [example for example in examples.train if example.part == number]
        encoded = encode(watch(inside), renderer, options)
        tally.add(encoded.tally)
        if not encoded.units:
            name = f"{parts[number].name}: " if stage.data.mix else "data: "
            reasons = "; ".join(encoded.tally.lines())
            raise UserError(
                f"data: none of the {len(inside)} rows fits into {options.limit} tokens; raise max_length"
                if not encoded.tally.rejected
                else f"{name}none of the {len(inside)} rows can be used: {reasons}"
            )
        sources.append(encoded.units)
    num_dropped = tally.dropped.total()
    whole = replace(options, overlong="drop")  # a number is taken of whole rows
    heldout = encode(watch(examples.heldout), renderer, whole)
    tally.add(heldout.tally, "held out: ")
    train = [unit for source in sources for unit in source]
    return Units(
        train,
        heldout.units,
        num_dropped,
        tally,
        build_stage_mixture(sources, stage.data, seed) if stage.data.mix else None,
    )


def choose_stage_encoding(stage: OfflineStage, limit: int) -> Encoding:
    limit = min(stage.max_length or limit, limit)
    return Encoding(train_on=stage.train_on, limit=limit, overlong=stage.overlong, on_bad_row=stage.data.on_bad_row)


def build_stage_mixture(sources: Sequence[Sequence[Unit]], data: DataOptions, seed: int) -> Mixture:
    sizes = [[sum(len(datum.tokens) for datum in unit) for unit in source] for source in sources]
    return Mixture(sizes, [part.weight for part in data.parts], data.mix_by, data.mix_stop, seed)

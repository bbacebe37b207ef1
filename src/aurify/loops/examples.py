"""From a stage's `data` to units that the offline loop trains on, and to units held out for evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aurify.data.formats import preference_data, sft_data
from aurify.data.named import load_dataset
from aurify.data.sources import Row, load_rows
from aurify.errors import UserError
from aurify.loops.offline import Unit
from aurify.loops.progress import derive_seed
from aurify.loops.recipe import DataOptions, OfflineStage
from aurify.tracking.jsonl import replace_text

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet

PAIRS_FILE, HELDOUT_FILE = "pairs.jsonl", "heldout_pairs.jsonl"


@dataclass(frozen=True)
class Rows:
    train: Sequence[Row]
    heldout: Sequence[Row] = ()


@dataclass(frozen=True)
class Examples:
    train: list[Unit]
    heldout: list[Unit]
    num_dropped: int  # training units above the length limit


def rows_of_file(data: DataOptions, seed: int, *, hold_out: bool) -> Rows:
    """A user's file, or function. hold_out: without `heldout_path`, a share of its rows is kept for evaluation."""
    rows = load_rows(data.path) if data.dataset is None else load_dataset(data.dataset)  # type: ignore[arg-type]
    if data.heldout_path is not None:
        return Rows(rows, load_rows(data.heldout_path))
    return split(rows, data.heldout_share, seed) if hold_out else Rows(rows)


def split(rows: Sequence[Row], share: float, seed: int) -> Rows:
    """Rows with the same prompt stay on one side: a held-out prompt is one that training never saw."""
    keys = [prompt_key(row) for row in rows]
    prompts = sorted(set(keys))
    random.Random(derive_seed(seed, "heldout")).shuffle(prompts)
    chosen = set(prompts[: int(len(prompts) * share)])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    return Rows(train, [row for row, key in zip(rows, keys, strict=True) if key in chosen])


def prompt_key(row: Row) -> str:
    """What comes before the first answer."""
    if "prompt" in row:
        return json.dumps(row["prompt"])
    messages = row.get("messages") or []
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    return json.dumps(messages[: roles.index("assistant")] if "assistant" in roles else messages)


def rows_of_demonstrations(taskset: TaskSet, num: int, seed: int) -> Rows:
    """Training tasks with the answer that the task itself would give."""
    answered = ((task, taskset.demonstration(task)) for task in taskset.train(derive_seed(seed, "demonstrations")))
    rows = [
        Row({"messages": [*task.prompt, {"role": "assistant", "content": answer}]}, f"task {task.id}")
        for task, answer in islice(answered, num)
        if answer is not None
    ]
    if not rows:
        raise UserError(f"task {taskset.name!r}: there is no training task with an answer to demonstrate")
    return Rows(rows)


def examples_of(rows: Rows, stage: OfflineStage, renderer: Renderer, *, pairs: bool, limit: int) -> Examples:
    """Tokens. Units above `limit` (or the stage's own max_length) are an error that names the row, or are dropped."""
    limit = min(stage.max_length or limit, limit)
    train, places = units_of(rows.train, stage, renderer, pairs), [getattr(row, "place", "a row") for row in rows.train]
    kept = []
    for unit, place in zip(train, places, strict=True):
        longest = max(len(datum.tokens) for datum in unit)
        if longest <= limit:
            kept.append(unit)
        elif stage.overlong == "error":
            raise UserError(
                f"{place}: the row has {longest} tokens; at most {limit} fit (max_length, or the model's context). "
                "Raise max_length, shorten the row, or set `overlong: drop` to leave such rows out"
            )
    if not kept:
        raise UserError(f"data: none of the {len(train)} rows fits into {limit} tokens; raise max_length")
    heldout = [u for u in units_of(rows.heldout, stage, renderer, pairs) if max(len(d.tokens) for d in u) <= limit]
    return Examples(kept, heldout, len(train) - len(kept))


def units_of(rows: Sequence[Row], stage: OfflineStage, renderer: Renderer, pairs: bool) -> list[Unit]:
    if not pairs:
        return [(datum,) for datum in sft_data(rows, renderer, stage.train_on)]
    data = preference_data(rows, renderer)
    return list(zip(data[::2], data[1::2], strict=True))


def saved_pairs(folder: Path) -> Rows | None:
    """The pairs that a stage has sampled: a resumed run, or a later stage, takes the very same."""
    if not (folder / PAIRS_FILE).exists():
        return None
    return Rows(*(read_rows(folder / name) for name in (PAIRS_FILE, HELDOUT_FILE)))


def save_pairs(folder: Path, rows: Rows) -> None:
    """The training pairs come last: where they are, both files are complete."""
    for name, part in ((HELDOUT_FILE, rows.heldout), (PAIRS_FILE, rows.train)):
        replace_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))


def read_rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also split at U+2028 inside a text
    return [Row(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, 1) if line]

"""Suites of lm-evaluation-harness: which of its tasks to run, and how. `recipes/eval/` has some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurify.bounds import Checked, NonNegativeInt, PositiveFloat
from aurify.config import build_options, load_config
from aurify.errors import UserError

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, kw_only=True)
class Suite(Checked):
    """tasks: names that the harness knows, or whole tasks in its own form. The harness's numbers are its own."""

    name: str
    tasks: list[str | dict[str, Any]]
    files: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # task -> split -> a local file in place of the hub's
    chat_template: bool = True
    system: str | None = None  # a system prompt
    num_fewshot: NonNegativeInt | None = None  # examples in the prompt; None: as each task says
    fewshot_as_turns: bool = True  # examples as turns of the chat, and not in one message
    limit: PositiveFloat | None = None  # the first so many questions of each task; below 1 a share of them
    generation: dict[str, Any] = field(default_factory=dict)  # over what tasks say, such as max_gen_toks
    offline: bool = False  # nothing is asked of the hub
    seed: int = 1234  # of the examples, and of random sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise UserError("tasks: none; name some that lm-eval knows, such as [gsm8k]")
        names = [read_task_name(task) for task in self.tasks]
        if unknown := [name for name in self.files if name not in names]:
            raise UserError(f"files: {unknown[0]!r} is none of the tasks, which are {', '.join(names)}")
        for name, splits in self.files.items():
            for split, file in splits.items():
                if not Path(file).expanduser().is_file():
                    raise UserError(f"files.{name}.{split}: there is no file {file!r}")

    @property
    def limit_count(self) -> float | None:
        """As the harness wants it: a number of questions is an integer."""
        return int(self.limit) if self.limit is not None and self.limit >= 1 else self.limit

    def list_changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Each task's name, and what is written of it: all of it, or what differs from what the harness has. Local
        files stand in place of the hub's."""
        found = []
        for task in self.tasks:
            name, changes = read_task_name(task), {} if isinstance(task, str) else dict(task)
            found.append((name, changes | (read_local_files(self.files[name]) if name in self.files else {})))
        return found

    @property
    def is_whole(self) -> bool:
        """Every task is written out: the harness need not look through its thousands."""
        return all(not isinstance(task, str) and is_whole_task(task) for task in self.tasks)


def is_whole_task(task: Mapping[str, Any]) -> bool:
    return "doc_to_text" in task


def read_task_name(task: str | Mapping[str, Any]) -> str:
    if isinstance(task, str):
        return task
    if not isinstance(task.get("task"), str):
        raise UserError(f"tasks: a task without a name: {dict(task)}; write its name under `task`")
    return str(task["task"])


def read_local_files(files: Mapping[str, str]) -> dict[str, Any]:
    """Keys of a task that reads them."""
    paths = {split: str(Path(file).expanduser().absolute()) for split, file in files.items()}
    kind = "parquet" if all(path.endswith(".parquet") for path in paths.values()) else "json"
    return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": paths}}


def read_suite(path: Path, overrides: list[str]) -> Suite:
    """overrides: dotted keys with values, such as limit=20."""
    values = load_config(path, overrides)
    return build_options(Suite, {"name": path.stem, **values}, "")


@contextmanager
def hub_switched_off(wanted: bool) -> Iterator[None]:
    """Around all that imports the hub's libraries, which look once."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    if wanted:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

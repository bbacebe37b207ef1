"""What an evaluation leaves: `results.json` with every number, and a file for each model and task with every answer.
Each result is written as soon as it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from aurify.evaluation.evaluate import Evaluation
from aurify.evaluation.paired import compare_paired
from aurify.evaluation.scores import Scored
from aurify.tracking import jsonl
from aurify.tracking.samples import record_sample

RESULTS = "results.json"


@dataclass
class EvaluationFolder:
    """facts: what was asked and how, for results.json."""

    path: Path
    facts: Mapping[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)  # one a model and task
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    known: list[Scored] = field(default_factory=list)  # whose models can be compared question by question

    def add(self, scored: Scored) -> None:
        """Writes the answers down and compares the model with those that did the same task."""
        name = f"answers/{len(self.rows) + 1:02d}-{name_file(scored.task)}-{name_file(scored.model)}.jsonl"
        (self.path / "answers").mkdir(parents=True, exist_ok=True)
        jsonl.write_log(self.path / name, record_answers(scored.evaluation))
        self.known.append(scored)
        self.comparisons += compare_models([other for other in self.known if other.task == scored.task], scored)
        self.add_row({**scored.to_record(), "answers": name})

    def add_row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        self.path.mkdir(parents=True, exist_ok=True)
        jsonl.write_run_file(self.path / RESULTS, self.to_record())

    def to_record(self) -> dict[str, Any]:
        return {**self.facts, "results": self.rows, "comparisons": self.comparisons}


def compare_models(same: Sequence[Scored], newest: Scored) -> list[dict[str, Any]]:
    """The newest of the models that did a task with each of the others."""
    return [
        {"task": first.task, "first": first.model, "second": second.model}
        | compare_paired(first.evaluation.by_task, second.evaluation.by_task).to_record()
        for first, second in combinations(same, 2)
        if second is newest
    ]


def record_answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row a task: what its answers earn on average, and each of them as in a run's samples.jsonl."""
    return [
        {
            "task": group.task.id,
            "question": group.task.prompt,
            "answer": group.task.answer,
            **({"part": group.task.part} if group.task.part else {}),
            "value": value,
            "answers": [record_sample(group, trajectory) for trajectory in group.trajectories],
        }
        for group, value in zip(evaluation.groups, evaluation.by_task, strict=True)
    ]


def name_file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "model"

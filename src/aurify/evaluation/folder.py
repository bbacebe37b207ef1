"""What an evaluation leaves: `results.json` with every number, and a file for each model and task with every answer.
Each result is written as soon as it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurify.evaluation.evaluate import Evaluation
from aurify.evaluation.harness import list_suite_rows, list_suite_values
from aurify.evaluation.paired import compare_paired
from aurify.evaluation.scores import Scored
from aurify.tracking import jsonl
from aurify.tracking.samples import record_sample

RESULTS = "results.json"
Values = Mapping[Any, float]  # by question


@dataclass
class EvaluationFolder:
    """facts: what was asked and how, for results.json."""

    path: Path
    facts: Mapping[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)  # one a model, task and measure
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    # (task, measure) -> (model, what it earns on each question, by the question's id)
    known: dict[tuple[str, str], list[tuple[str, Values]]] = field(default_factory=dict)

    def add(self, scored: Scored) -> None:
        """Writes the answers down and compares the model with those that did the same task."""
        name = self.write_answers(scored.model, scored.task, record_answers(scored.evaluation))
        values = dict(enumerate(scored.evaluation.by_task))
        self.compare(scored.model, scored.task, scored.evaluation.measure, values)
        self.add_row({**scored.to_record(), "answers": name})

    def add_suite(self, model: str, suite: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The results of lm-evaluation-harness. Returns the rows."""
        logs = {
            task: self.write_answers(model, task, [json.loads(json.dumps(row, default=str)) for row in samples])
            for task, samples in results.get("samples", {}).items()
        }
        rows = list_suite_rows(results)
        for row in rows:
            self.compare(model, row["task"], row["measure"], list_suite_values(results, row["task"], row["measure"]))
            self.add_row({"model": model, "suite": suite, **row, "log": logs.get(row["task"])})
        return rows

    def write_answers(self, model: str, task: str, lines: Sequence[Mapping[str, Any]]) -> str:
        """Returns the file, as results.json names it."""
        (self.path / "answers").mkdir(parents=True, exist_ok=True)
        number = len(list((self.path / "answers").iterdir())) + 1
        name = f"answers/{number:02d}-{name_file(task)}-{name_file(model)}.jsonl"
        jsonl.write_log(self.path / name, lines)
        return name

    def compare(self, model: str, task: str, measure: str, values: Values) -> None:
        """The model with each of those that were asked the same questions before it."""
        others = self.known.setdefault((task, measure), [])
        for other, known in others:
            if values and known.keys() == values.keys():
                pairs = [known[key] for key in values], list(values.values())
                found = {"task": task, "measure": measure, "first": other, "second": model}
                self.comparisons.append(found | compare_paired(*pairs).to_record())
        others.append((model, values))

    def add_row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        self.path.mkdir(parents=True, exist_ok=True)
        jsonl.write_run_file(self.path / RESULTS, self.to_record())

    def to_record(self) -> dict[str, Any]:
        return {**self.facts, "results": self.rows, "comparisons": self.comparisons}


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

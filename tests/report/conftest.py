from __future__ import annotations

import pytest
from report_pages import RECIPE, sample

from aurify.tracking import jsonl
from aurify.tracking.run_folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of three stages: two finished, one under way."""
    folder = RunFolder.create(tmp_path, RECIPE)
    for name in RECIPE["stages"]:
        stage = folder.stage(name)
        for step in range(1, 31):
            row = {"step": step, "loss": 2 / step, "optim/grad_norm": 1.0, "time/step": 0.5, "memory/peak_gb": 1.5}
            if name == "grpo":
                row |= {"reward/mean": step / 30, "reward/std": 0.3, "mine/own_metric": float(step)}
            jsonl.append_log(stage.metrics, row)
            jsonl.append_log(stage.ledger, {"step": step, "ledger/tokens_trained": 100.0, "ledger/groups": 4.0})
        stage.events.write_text("2026-01-01 00:00:00 all is well\n")
    for step in (1, 10, 20, 30):
        jsonl.append_log(
            folder.stage("grpo").samples, sample(step, 0.0, "worst words"), sample(step, 1.0, "best words")
        )
    pair = {"prompt": [{"role": "user", "content": "which one?"}], "chosen": "this one", "rejected": "that one"}
    jsonl.append_log(folder.stage("pairs").path / "pairs.jsonl", pair)
    task = {"name": "largest_number"}
    numbers = {"sft": ("accuracy", 0.086, 0.344), "pairs": ("accuracy", 0.344, 0.531)}
    for name, (measure, before, after) in numbers.items():
        folder.record(name, status="finished", method=RECIPE["stages"][name]["method"], task=task, seconds=75.0,
                      measure=measure, before=before, after=after, details_after={"error": 0.027})  # fmt: skip
    folder.record("grpo", status="running", method="grpo", model="@pairs", task=task, measure="accuracy", before=0.531)
    return folder

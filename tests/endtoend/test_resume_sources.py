"""Exact resume with a guide and with a replay buffer: killed in the middle, the run goes on bit for bit (T28)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from pipelines import ON_NUMBERS, SHORT_ONLINE, assert_same, run_to_the_end, signal_at, steps, tiny


def recipe(traces: Path, dtype: str) -> dict[str, Any]:
    """The buffer starts at once: after the first stage the model is right now and then."""
    return {
        **ON_NUMBERS,
        "model": tiny(dtype),
        "stages": {
            "sft": {
                "method": "sft",
                "data": {"demonstrations": 800},
                "steps": 50,
                "batch_size": 16,
                "optim": {"lr": 3e-3},
            },
            "luffy": {
                "method": "luffy",
                "model": "@sft",
                **SHORT_ONLINE,
                "guidance": {"path": str(traces), "num_off": 2},
                "num_minibatches": 2,
            },
            "both": {
                "method": "exgrpo",
                "model": "@luffy",
                **SHORT_ONLINE,
                "guidance": {"demonstrations": True, "replace": "all_failed"},
                "replay": {"start": 0.0, "per_question": 3},
                "dynamic_sampling": 1,
                "algorithm": {"kl_coef": 0.05},
            },
        },
    }


def write_traces(path: Path) -> Path:
    """For every question that the task can ask, several right answers, a wrong one and one that is too long."""
    rows = []
    for a in range(1, 21):
        for b in range(1, 21):
            question = f"Which is the largest of these numbers: {a}, {b}? Answer with the number."
            largest = max(a, b)
            rows.append({"prompt": question, "answer": largest, "traces": [str(largest), f" {largest}", "0", "1" * 9]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_killed_or_stopped_in_each_stage_and_resumed(tmp_path, dtype):
    values = recipe(write_traces(tmp_path / "traces.jsonl"), dtype)
    straight, killed, stopped = (tmp_path / name for name in ("straight", "killed", "stopped"))
    run_to_the_end(values, straight)

    rows = steps(straight / "both" / "metrics.jsonl")
    assert any(row["replay/used"] for row in rows), "a buffer that was never used proves nothing"
    assert any(row["replay/trajectories"] > rows[5]["replay/trajectories"] for row in rows[6:])
    ledger = steps(straight / "luffy" / "ledger.jsonl")
    assert all(row["ledger/tokens_guided"] > 0 for row in ledger)
    assert any(row["ledger/groups_discarded"] for row in steps(straight / "both" / "ledger.jsonl"))
    events = (straight / "luffy" / "events.log").read_text()
    assert all(
        f"{n} {why}" in events for n, why in ((390, "judged wrong"), (390, "too long"), (10, "for a held-out task"))
    )

    for stage, step in (("luffy", 6), ("both", 10)):
        assert signal_at(values, killed, stage, step, signal.SIGKILL) == -signal.SIGKILL
        assert not (killed / stage / "final").exists()
    run_to_the_end(values, killed)
    assert_same(values, straight, killed)

    assert signal_at(values, stopped, "both", 9, signal.SIGTERM) == 1
    [checkpoint] = (stopped / "both" / "checkpoints").iterdir()
    assert (checkpoint / "loop.pt").is_file()
    run_to_the_end(values, stopped)
    assert_same(values, straight, stopped)

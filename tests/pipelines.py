"""Runs recipes in processes of their own, which can then be killed. The processes are forks of a server that has
imported everything once, so each costs a moment and not ten seconds. What two runs of one recipe left behind can be
compared."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from io import StringIO
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["aurify.pipeline.run", "aurify.samplers.inprocess", "pipelines"])
ON_NUMBERS: dict[str, Any] = {  # without its model: tests add `tiny(dtype)`
    "task": {"name": "largest_number", "count": 2, "maximum": 20, "num_heldout": 10},
    "evaluation": {"num_tasks": 10, "sampling": {"max_tokens": 4, "temperature": 0.0}},
}
SHORT_ONLINE: dict[str, Any] = {  # a stage with some checkpoints, to go on from the middle of it
    "lora": {"rank": 4, "dropout": 0.1},
    "steps": 14,
    "prompts_per_step": 4,
    "completions_per_prompt": 6,
    "sampling": {"max_tokens": 4},
    "checkpoint_every": 4,
    "samples_every": 2,
    "optim": {"lr": 1e-3, "schedule": "linear"},
}


def tiny(dtype: str) -> dict[str, str]:
    return {"name": "random:tiny", "dtype": dtype}


def run(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Runs a recipe in `path`, or goes on with what is there. Returns the stages' results."""
    import torch
    from rich.console import Console as RichConsole

    from aurify.pipeline.recipe import build_recipe
    from aurify.pipeline.run import run_pipeline
    from aurify.tracking.run_folder import RunFolder
    from aurify.tracking.trackers.console import Console

    torch.set_num_threads(1)
    path.mkdir(parents=True, exist_ok=True)
    return run_pipeline(build_recipe(values), RunFolder(path), console=Console(RichConsole(file=StringIO())))


def start(values: dict[str, Any], path: Path) -> Any:
    process = SERVER.Process(target=run, args=(values, path))
    process.start()
    return process


def run_to_the_end(values: dict[str, Any], path: Path) -> None:
    process = start(values, path)
    process.join()
    assert process.exitcode == 0


def signal_at(values: dict[str, Any], path: Path, stage: str, step: int, number: signal.Signals) -> int:
    """Sends a signal once the metrics of a step are written. Returns the exit code."""
    process = start(values, path)
    metrics = path / stage / "metrics.jsonl"
    while process.is_alive() and len(steps(metrics)) < step:
        time.sleep(0.002)
    assert process.is_alive(), f"ended before step {step} of {stage}"
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode is not None
    return int(process.exitcode)


def assert_same(values: dict[str, Any], path: Path, other: Path) -> None:
    """Two runs of a recipe, to the bit: what every step recorded and sampled, and the weights of every stage."""
    from safetensors.torch import load_file

    for stage, options in values["stages"].items():
        for name in ("metrics.jsonl", "ledger.jsonl", "samples.jsonl"):
            assert steps(path / stage / name) == steps(other / stage / name), f"{stage}/{name}"
        assert [row["step"] for row in steps(path / stage / "metrics.jsonl")] == list(range(1, options["steps"] + 1))
        for file in sorted((path / stage / "final").glob("*.safetensors")):
            ours, theirs = load_file(file), load_file(other / stage / "final" / file.name)
            assert ours.keys() == theirs.keys()
            assert all(ours[name].equal(theirs[name]) for name in ours), f"{stage}/final"


def steps(path: Path) -> list[dict[str, Any]]:
    """What was recorded at each step, without what no two runs have in common: times and memory."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [without_times(row) for row in rows]


def without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not k.startswith(("time/", "memory/"))}
    return value

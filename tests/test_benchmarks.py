"""The benchmarks' plumbing, with the random model and our side alone: processes, turns, counts, files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from aurify.models.model import load_tokenizer

CPU = Path(__file__).parents[1] / "benchmarks" / "cpu.py"


def pairs() -> list[list[list[int]]]:
    """The sequences of the case `dpo`, for the tokenizer of the random model."""
    spec = importlib.util.spec_from_file_location("benchmark_work", CPU.parent / "work.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.make_work(load_tokenizer("random:tiny")).rows
    return [[row.prompt + row.chosen, row.prompt + row.rejected] for row in rows]


def num_nodes(sequences: list[list[int]]) -> int:
    """Tokens that are left when what sequences begin with alike is counted once."""
    return len({tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)})


def test_cases_run_and_are_written(tmp_path):
    command = [sys.executable, str(CPU), "dpo-lora", "grpo-full", "grpo_task-lora", "--model", "random:tiny"]
    command += ["--sides", "none", "--threads", "1", "--repeats", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert record["threads"] == 1 and min(record["gemm_peak"]) > 1e8
    results = {case: sides["aurify"] for case, sides in record["results"].items()}
    assert set(results) == {"dpo-lora", "grpo-full", "grpo_task-lora"}
    for result in results.values():
        assert len(result["steps"]) == 2 and result["peak_bytes"] > 2**26
    dpo, grpo, task = results.values()
    assert dpo["tokens"] == sum(len(sequence) for pair in pairs() for sequence in pair)
    each, together = sum(map(num_nodes, pairs())), num_nodes([sequence for pair in pairs() for sequence in pair])
    assert together <= dpo["steps"][0]["computed"] <= each < dpo["tokens"]  # a pair shares its prompt at least
    assert dpo["flops"] > 6 * 90_000 * dpo["steps"][0]["computed"]  # forward and backward of 90,000 weights, and more
    assert 64 <= grpo["tokens"] <= 64 * 32
    assert grpo["steps"][0]["groups"] == 8
    assert task["steps"][0]["groups"] == 0  # random weights solve nothing, and what nobody solved is not trained
    assert (tmp_path / "cpu.md").read_text().count("\n") == 5


def test_unknown_case_is_named():
    done = subprocess.run([sys.executable, str(CPU), "sft"], capture_output=True, text=True)
    assert done.returncode != 0 and "no such case: sft; there are sft-full" in done.stderr


def test_questions_about_our_code_name_functions_that_are_there():
    """A function that was renamed or moved must be so in memory_code.jsonl, too."""
    command = [sys.executable, "-c", "import memory_code; print(len(memory_code.read_questions()))"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CPU.parent)
    assert done.stdout == "30\n", done.stderr[-500:]

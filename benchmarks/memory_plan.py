"""The memory plan against the measured peak, for five recipes on a CPU.

    python benchmarks/memory_plan.py --out docs/data/memory_plan.json

Each recipe is a process of its own that runs the whole stage: two steps and the export. Measured is the process's
high-water mark of resident memory (Linux's VmHWM, begun anew when the stage begins) less what the process
held when the stage began: Python, libraries, the rows of the recipe. Pages of the model's file count as they are read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from aurify.cores import limit_library_memory

GIB = 2**30
FORK = multiprocessing.get_context("fork")
ROWS = 24
QUESTION = "Tell me something about the number {k}, its neighbours, and what people have made of it over the years."
ANSWER = "The number {k} comes after {before} and before {after}, and people have counted to it for a long time. "
SHORT = {"evaluation": {"num_tasks": 0}, "seed": 0}
STEPS = {"batch_size": 8, "steps": 2}
ON_ROWS = {**STEPS, "data": {"path": "rows.jsonl", "heldout_share": 0}}
ON_PAIRS = {**STEPS, "batch_size": 4, "data": {"path": "pairs.jsonl", "heldout_share": 0}}
LORA = {"lora": {"rank": 16}}
GRPO = {
    **LORA, "method": "grpo", "steps": 2, "prompts_per_step": 8, "completions_per_prompt": 8,
    "sampling": {"max_tokens": 32}, "task": {"name": "largest_number"}, "engine": {"micro_batch_tokens": 1024},
    "algorithm": {"flat_groups": "keep", "kl_coef": 0.05},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "SFT, LoRA": {**LORA, "method": "sft", **ON_ROWS},
    "SFT, all weights": {"method": "sft", **ON_ROWS},
    "DPO, LoRA": {**LORA, "method": "dpo", **ON_PAIRS},
    "GRPO, LoRA": GRPO,
    "reward model, LoRA": {**LORA, "method": "reward_model", **ON_PAIRS},
}


def write_data(folder: Path) -> None:
    """Rows of about 130 to 260 tokens, and pairs of them."""
    rows, pairs = [], []
    for k in range(ROWS):
        ask = [{"role": "user", "content": QUESTION.format(k=k)}]
        answers = [
            [{"role": "assistant", "content": ANSWER.format(k=k, before=k - 1, after=k + 1) * (3 + (k + shift) % 4)}]
            for shift in range(2)
        ]
        rows.append({"messages": ask + answers[0]})
        pairs.append({"prompt": ask, "chosen": answers[0], "rejected": answers[1]})
    for name, lines in (("rows.jsonl", rows), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_case(name: str, model: str, dtype: str, tell: Any) -> None:
    """In a process of its own: sends the stage's memory."""
    from rich.console import Console as RichConsole

    from aurify.pipeline.recipe import build_recipe
    from aurify.pipeline.run import run_pipeline
    from aurify.tracking.run_folder import RunFolder
    from aurify.tracking.trackers.console import Console

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_data(Path())
        recipe = build_recipe({**SHORT, "model": {"name": model, "dtype": dtype}, "stages": {"stage": CASES[name]}})
        quiet = Console(RichConsole(file=StringIO()))
        results = run_pipeline(recipe, RunFolder.create(Path("runs"), {}), console=quiet)
        os.chdir("/")
    tell.send(results["stage"]["memory"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    limit_library_memory()  # as the command does
    import_module("aurify.pipeline.run")  # once for all processes, which are forks of this one
    import_module("aurify.samplers.inprocess")
    import_module("transformers.models.llama.modeling_llama")
    found = {}
    for name in options.cases or CASES:
        mine, theirs = multiprocessing.Pipe()
        process = FORK.Process(target=run_case, args=(name, options.model, options.dtype, theirs))
        process.start()
        theirs.close()
        memory = found[name] = mine.recv()
        process.join()
        ratio = memory["peak"] / memory["measured"]
        print(
            f"{name:20} planned {memory['peak'] / GIB:.3f} GiB ({memory['phase']}), measured "
            f"{memory['measured'] / GIB:.3f} GiB, planned / measured {ratio:.3f}",
            flush=True,
        )
        if options.out:
            facts = {"date": time.strftime("%Y-%m-%d"), "model": options.model, "dtype": options.dtype}
            facts["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
            options.out.write_text(json.dumps({**facts, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

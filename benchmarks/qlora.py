"""LoRA against QLoRA on a real model: SFT and then GRPO on the demo's task, the base whole, in 8 and in 4 bits.

    python benchmarks/qlora.py --out docs/data/qlora.json

Prints, for each base, the bytes of all weights (adapters and head included), the loss of SFT at its first and last
step, the reward of GRPO in its first and last three steps, and the held-out accuracy before, between and after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from aurify.pipeline.recipe import build_recipe
from aurify.pipeline.run import run_pipeline
from aurify.tracking.run_folder import RunFolder

BASES = (None, "int8", "nf4")


def make_recipe(model: str, quantize: str | None, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": {"name": model, "quantize": quantize, "dtype": args.dtype},
        "seed": args.seed,
        "task": {"name": "largest_number", "count": 4},
        "lora": {"rank": 32, "alpha": 32},
        "evaluation": {"num_tasks": args.tasks, "sampling": {"max_tokens": 48, "temperature": 1.0}},
        "stages": {
            "sft": {
                "method": "sft", "data": {"demonstrations": 128}, "steps": 6, "batch_size": 8, "optim": {"lr": 2e-4},
            },
            "grpo": {
                "method": "grpo", "model": "@sft", "steps": args.steps, "prompts_per_step": 8,
                "completions_per_prompt": 8, "sampling": {"max_tokens": 16}, "optim": {"lr": 2e-4},
            },
        },
    }  # fmt: skip


def measure(model: str, quantize: str | None, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, began = RunFolder(Path(scratch)), time.process_time()
        results = run_pipeline(build_recipe(make_recipe(model, quantize, args)), folder)
        seconds = time.process_time() - began
        curves = {}
        for stage, key in (("sft", "loss"), ("grpo", "reward/mean"), ("grpo", "rollout/logprob_gap")):
            rows = map(json.loads, (folder.stage(stage).path / "metrics.jsonl").read_text().splitlines())
            curves[f"{stage} {key}"] = [row[key] for row in rows if key in row]
        engines = json.loads((Path(scratch) / "run_info.json").read_text())
        return {"seconds": seconds, "results": results, "curves": curves, "info": engines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {}
    for quantize in BASES:
        found[quantize or "whole"] = measure(args.model, quantize, args)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"options": {k: str(v) for k, v in vars(args).items()}, **found}, indent=1))


if __name__ == "__main__":
    main()

"""The tables of gpu_check.py, from what it wrote:

python benchmarks/gpu_table.py gpu_check.json"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GIB = 2**30


def print_tables(values: dict[str, Any]) -> None:
    cases = values["cases"]
    print()
    show("Cases", ("part", "ok", "failed", "broken", "skipped", "seconds"), count_cases(cases))
    show("Training", TRAINING, [line for found in results(cases, "training") for line in training(*found)])
    show("Decoding", DECODING, [line for found in results(cases, "decoding") for line in decoding(*found)])
    lines = [line for _, found in results(cases, "grpo") for line in grpo(found)]
    show("GRPO: a step of 8 x 8 x 128 tokens, LoRA", GRPO, lines)
    for title, found in results(cases, "profile"):
        for name, kernels in found.items():
            lines = [[one["kernel"], one["count"], f"{one['ms']:.2f}", f"{one['share']:.1%}"] for one in kernels]
            show(f"{name}, {title}", ("kernel", "times", "ms", "share"), lines)


def results(cases: dict[str, Any], part: str) -> list[tuple[str, Any]]:
    return [
        (title.partition(" ")[2], case["result"])
        for title, case in cases.items()
        if title.split(" ")[0] == part and "result" in case
    ]


def count_cases(cases: dict[str, Any]) -> list[list[Any]]:
    counts: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for title, case in cases.items():
        part = title.split(" ")[0]
        counts.setdefault(part, Counter())[case["status"]] += 1
        seconds[part] += case["seconds"]
    return [
        [part, *(found[status] for status in ("ok", "FAILED", "broken", "skipped")), f"{seconds[part]:.0f}"]
        for part, found in counts.items()
    ]


TRAINING = (
    "case", "side", "s / step", "tokens / s", "of peak", "peak GiB", "held GiB", "launches", "graphs", "syncs", "reads",
    "faster",
)  # fmt: skip


def training(title: str, sides: dict[str, Any]) -> list[list[Any]]:
    lines, ours = [], sides.get("aurify", {}).get("seconds")
    for name, side in sides.items():
        if "seconds" not in side:
            lines.append([title, name, side.get("skipped") or side.get("error")])
            continue
        faster = f"{side['seconds'] / ours:.2f}x" if ours and not name.startswith("aurify") else ""
        counts = [side.get(key, "") for key in ("launches", "graph_launches", "host_syncs", "scalar_reads")]
        speed = [f"{side['seconds']:.4f}", f"{side['tokens_per_second']:.0f}", f"{side['mfu']:.1%}"]
        memory = [f"{side[key] / GIB:.1f}" for key in ("peak_bytes", "held_bytes")]
        lines.append([title, name, *speed, *memory, *counts, faster])
    return lines


DECODING = ("case", "batch", "side", "tokens / s", "ms / step", "floor ms", "of floor", "prefill ms", "faster")


def decoding(title: str, found: dict[str, Any]) -> list[list[Any]]:
    lines = []
    for name, one in found.items():
        if "step_seconds" not in one:
            lines.append([title, *name.split(" ", 1), one.get("error")])
            continue
        ours = found.get(f"{one['batch']} aurify", {}).get("seconds")
        faster = f"{one['seconds'] / ours:.2f}x" if ours and one["side"] != "aurify" else ""
        times = [f"{1e3 * one[key]:.2f}" for key in ("step_seconds", "floor_seconds")]
        speed = [f"{one['tokens_per_second']:.0f}", *times, f"{one['share_of_floor']:.0%}"]
        lines.append([title, one["batch"], one["side"], *speed, f"{1e3 * one['prefill_seconds']:.1f}", faster])
    return lines


GRPO = ("", "sample s", "forward_backward s", "optim_step s", "sync s", "sample GiB", "train GiB", "gap", "ratio^2")


def grpo(found: dict[str, Any]) -> list[list[Any]]:
    lines = []
    for name in ("first", "median"):
        one = found[name]
        times = [f"{one[f'{phase}_seconds']:.3f}" for phase in ("sample", "forward_backward", "optim_step", "sync")]
        memory = [f"{one[f'{phase}_peak_bytes'] / GIB:.1f}" for phase in ("sample", "forward_backward")]
        lines.append([name, *times, *memory, f"{one['sampler_gap']:.4f}", f"{one['sampler_ratio_squared']:.4f}"])
    return lines


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    if not lines:
        return
    texts = [[str(cell) for cell in line] + [""] * (len(columns) - len(line)) for line in (columns, *lines)]
    widths = [max(len(line[k]) for line in texts) for k in range(len(columns))]
    print(title)
    for line in texts:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


if __name__ == "__main__":
    print_tables(json.loads(Path(sys.argv[1]).read_text()))

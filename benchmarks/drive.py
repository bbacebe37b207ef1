"""Runs the cases: starts the sides, lets them take turns, and writes the table."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from work import GSM8K, make_work

HERE = Path(__file__).resolve().parent
CASES = {
    "sft-full": ("aurify", "trl"),
    "sft-lora": ("aurify", "trl"),
    "dpo-full": ("aurify", "trl"),
    "dpo-lora": ("aurify", "trl"),
    "grpo-full": ("aurify", "trl"),
    "grpo-lora": ("aurify", "trl"),
    "grpo_task-lora": ("aurify", "trl"),
    "sample": ("aurify", "generate", "vllm"),
}
COLUMNS = ("case", "side", "s / step", "tokens", "tokens / s", "peak GiB", "of GEMM peak", "our speed-up", "per token")
Message = dict[str, Any]


@dataclass
class Side:
    """A process of one side; see side.py for what is said."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    steps: list[Message] = field(default_factory=list)
    flops: float = 0.0

    @staticmethod
    def start(name: str, arguments: Sequence[str], folder: Path) -> Side:
        log = folder / f"{name}.log"
        python = os.environ["VLLM_PYTHON"] if name == "vllm" else sys.executable
        command = [python, str(HERE / f"{name}_side.py"), *arguments]
        with log.open("w") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        side = Side(name, process, log)
        side.receive()
        return side

    def receive(self) -> Message:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            end = "\n".join(self.log.read_text().strip().splitlines()[-15:])
            raise RuntimeError(f"the {self.name} side ended. Its last words:\n{end}")
        message: Message = json.loads(line)
        return message

    def tell(self, command: str) -> Message:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.receive()

    def result(self) -> Message:
        seconds = [step["seconds"] for step in self.steps]
        shares = [self.flops / step["seconds"] / step["gemm_peak"] for step in self.steps if "gemm_peak" in step]
        tokens = [step["tokens"] for step in self.steps]
        return {
            "seconds": statistics.median(seconds),
            "tokens": statistics.mean(tokens),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "peak_bytes": self.steps[-1]["peak_bytes"],
            "flops": self.flops,
            "share_of_peak": statistics.median(shares) if shares else None,
            "steps": self.steps,
        }


def run_case(
    case: str, sides: Sequence[str], arguments: Sequence[str], repeats: int, peak: Callable[[], float]
) -> dict[str, Message]:
    """Each side's result. All are loaded and warm before the first is measured; then A B A B ... Around each round of
    training steps, large matrix products are measured too: machines that others use change from minute to minute."""
    training = not case.startswith(("grpo", "sample"))  # elsewhere half of the time is no matrix product by design
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started: list[Side] = []
        try:
            for name in sides:
                begin = time.perf_counter()
                started.append(Side.start(name, [case, *arguments], Path(folder)))
                started[-1].tell("step")  # allocations, caches, first-use checks
                print(f"  {name}: ready after {time.perf_counter() - begin:.0f} s", flush=True)
            peaks = [peak()] if training else []
            for _ in range(repeats):
                for side in started:
                    side.steps.append(side.tell("step"))
                    print(f"  {side.name}: {side.steps[-1]['seconds']:.2f} s", flush=True)
                if training:
                    peaks.append(peak())
                    for side in started:
                        side.steps[-1]["gemm_peak"] = max(peaks[-2:])
            for side in started:
                side.flops = side.tell("count")["flops"]
        finally:
            for side in started:
                side.process.kill()
                side.process.wait()
        return {side.name: side.result() for side in started}


def gemm_peak(dtype: str, device: str) -> float:
    """FLOP/s of large matrix products: the best of twelve, in a process of its own."""
    size = 2048 if device == "cpu" else 8192
    code = f"""
import time, torch
a, b = (torch.randn({size}, {size}, dtype=torch.{dtype}, device={device!r}) for _ in range(2))
best = 1e9
for _ in range(12):
    begin = time.perf_counter()
    (a @ b)[0, 0].item()
    best = min(best, time.perf_counter() - begin)
print(2 * {size} ** 3 / best)
"""
    return float(subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout)


def rows_of(case: str, results: Mapping[str, Message]) -> list[list[str]]:
    rows, ours = [], results["aurify"]
    for name, result in results.items():
        share = result["share_of_peak"]
        rows.append(
            [
                case,
                name,
                f"{result['seconds']:.2f}",
                f"{result['tokens']:.0f}",
                f"{result['tokens_per_second']:.0f}",
                f"{result['peak_bytes'] / 2**30:.1f}",
                "" if share is None else f"{share:.0%}",
                f"{result['seconds'] / ours['seconds']:.1f}x" if name != "aurify" else "",
                f"{ours['tokens_per_second'] / result['tokens_per_second']:.1f}x" if name != "aurify" else "",
            ]
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def text_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[k]) for line in (COLUMNS, *rows)) for k in range(len(COLUMNS))]
    lines = (
        "  ".join(
            f"{cell:<{width}}" if k < 2 else f"{cell:>{width}}"
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (COLUMNS, *rows)
    )
    return "\n".join(lines)


def missing(side: str) -> str | None:
    """Why a side cannot take part."""
    if side == "trl" and not all(importlib.util.find_spec(name) for name in ("trl", "peft", "datasets")):
        return "trl, peft or datasets is not installed: pip install 'aurify[bench]'"
    if side == "vllm" and not os.environ.get("VLLM_PYTHON"):
        return "VLLM_PYTHON does not name the Python of an environment with vLLM"
    return None


def case_name(text: str) -> str:
    if text not in CASES:
        raise argparse.ArgumentTypeError(f"no such case: {text}; there are {', '.join(CASES)}")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", type=case_name, metavar="case", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="measured steps of each side, after a warm one")
    parser.add_argument("--sides", help="only these beside ours, with commas")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON and Markdown files")


def benchmark(args: argparse.Namespace, *, name: str, device: str, dtype: str, folder: str, tokenizer: Any) -> None:
    """All cases of the command line, on the model in `folder`; results go to <out>/<name>.json and .md."""
    import torch
    import transformers

    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    peak = partial(gemm_peak, dtype, device)
    before = peak()
    print(f"{device}, {torch.get_num_threads()} threads, {dtype}, large matrix products {before / 1e9:.0f} GFLOP/s")
    rows_from = "GSM8K" if GSM8K.is_file() else "made-up"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {rows_from} rows")
    chosen = None if args.sides is None else {"aurify", *args.sides.split(",")}
    results: dict[str, dict[str, Message]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        make_work(tokenizer).write(Path(scratch) / "work.json")
        for case in args.cases or CASES:
            print(f"{case}", flush=True)
            wanted = [side for side in CASES[case] if chosen is None or side in chosen]
            for side in wanted:
                if reason := missing(side):
                    print(f"  {side}: skipped: {reason}")
            sides = [side for side in wanted if not missing(side)]
            arguments = [folder, str(Path(scratch) / "work.json"), dtype]
            results[case] = run_case(case, sides, arguments, args.repeats, peak)
    after = peak()
    rows = [row for case, sides in results.items() for row in rows_of(case, sides)]
    print(f"\n{text_table(rows)}")
    if abs(after / before - 1) > 0.1:
        print(
            f"\nThe machine was not quiet: matrix products {before / 1e9:.0f} GFLOP/s before, {after / 1e9:.0f} after"
        )
    record = {
        "device": device,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "rows": rows_from,
        "gemm_peak": [before, after],
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        },
        "results": results,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / f"{name}.md").write_text(markdown(rows))
    print(f"\nwritten: {args.out / name}.json and .md")

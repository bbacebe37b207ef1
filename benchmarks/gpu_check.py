"""One script for a machine with a GPU: is Aurify right there, and how fast is it? Correctness first, table last.

    python benchmarks/gpu_check.py                        # all of it, in 8 minutes at most
    python benchmarks/gpu_check.py --only packed sampler  # some parts
    python benchmarks/gpu_check.py --cpu                  # correctness on small shapes, without a GPU

It needs torch, transformers and this checkout; no network, no files, no installation. Weights are random and made on
the card. Hugging Face's side of LoRA needs peft, and is left out without it.

Parts, in the order in which they run. Those of correctness, each in bf16 and fp32:

    packed         packed rows give what plain rows give, values and gradients, on every attention path there is
    sampler        the sampler's log-probs are the trainer's, with and without LoRA; draws are as likely as they say
    seeds          the same request and seed give the same tokens in any batch
    checkpointing  recomputing activations changes no gradient
    step           optimiser steps move the loss down
    save           what was saved is what is loaded
    retreat        when memory runs out, smaller micro-batches give the same gradients

and those of speed, in bf16 on the shapes of Qwen3-0.6B, Llama-3.2-1B and Qwen2.5-7B:

    facts          the card, versions, and what large products and copies reach
    training       an SFT step beside plain Hugging Face: tokens/s, share of the peak, memory, launches, host syncs
    decoding       1 to 256 sequences beside `generate` with a static cache, against the time to read all weights once
    grpo           five steps, split into sampling, training and sync
    profile        the kernels that take most time

A part that fails is shown and recorded, and the next one goes on. The JSON file is written after each case. Exit status
1: something is not correct. With --cpu, `--only training` and the like try the code of the speed parts on toys."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("aurify") is None:
    sys.path.insert(0, str(HERE.parent / "src"))
sys.path.insert(0, str(HERE))

CORRECTNESS = ("packed", "sampler", "seeds", "checkpointing", "step", "save", "retreat")
SPEED = ("facts", "training", "decoding", "grpo", "profile")
CORRECT_SHARE = 0.55  # of the time, for correctness: what is left for speed
GRACE = 30  # seconds after the end of the time, until a case that hangs is given up
DIED = 3  # exit status


@dataclass
class Record:
    """What is written to the JSON file, after each case."""

    path: Path
    device: str
    values: dict[str, Any] = field(default_factory=lambda: {"cases": {}, "warnings": []})

    def add(self, title: str, status: str, begin: float, **values: Any) -> None:
        seconds = round(time.monotonic() - begin, 2)
        self.values["cases"][title] = {"status": status, "seconds": seconds, **values}
        told = values.get("told") or values.get("error") or ""
        print(f"{status:>7}  {title}  ({seconds:.1f} s)  {told}", flush=True)
        self.write()

    def write(self) -> None:
        scratch = self.path.with_name(f".{self.path.name}.tmp")
        scratch.write_text(json.dumps(self.values, indent=1, default=str) + "\n")
        os.replace(scratch, self.path)

    @property
    def failed(self) -> list[str]:
        return [
            title
            for title, case in self.values["cases"].items()
            if title.split(" ")[0] in CORRECTNESS and case["status"] in ("FAILED", "broken")
        ]


class Warnings(logging.Handler):
    """Shows what Aurify warns of, and keeps it with the name of the case."""

    def __init__(self, record: Record, running: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept, self.running = record, running

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        print(f"         {text}", flush=True)
        self.kept.values["warnings"].append([self.running[-1] if self.running else "", text])


@dataclass(frozen=True)
class Step:
    """A case of any part. Its `run` returns the values of the JSON record: `told` for the line on the screen, `faults`
    where something is not correct, `result` for the table."""

    title: str
    seconds: float
    run: Callable[[], dict[str, Any]]

    @property
    def part(self) -> str:
        return self.title.split(" ")[0]


class Clock:
    """The time that was given. It began when the process did, or when its predecessor did."""

    def __init__(self, minutes: float, elapsed: float = 0.0) -> None:
        self.begin, self.budget = time.monotonic() - elapsed, 60 * minutes

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    def fits(self, seconds: float, correctness: bool, alone: bool) -> bool:
        share = CORRECT_SHARE if correctness and not alone else 1.0
        return self.elapsed + seconds <= share * self.budget


def correctness_steps(args: argparse.Namespace, card: Any) -> list[Step]:
    from gpu_correct import Case, cases

    def runner(case: Case) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            finding = case.run(card)
            told = finding.told if not finding.faults else " | ".join([finding.told, *finding.faults[:4]]).strip(" |")
            return {"told": told, "faults": finding.faults, "measured": finding.measured}

        return run

    return [Step(case.title, case.seconds if card.cuda else 4, runner(case)) for case in cases(args.dtypes, card)]


def speed_steps(card: Any) -> list[Step]:
    import gpu_speed
    import gpu_training

    known: list[Any] = []

    def peaks() -> Any:
        if not known:
            known.append(gpu_speed.measure_peaks(card))
        return known[0][0]

    def facts() -> dict[str, Any]:
        found = gpu_speed.tell_facts(card)
        peaks()
        found |= known[0][1]
        return {"result": found, "told": ", ".join(f"{key} {short(value)}" for key, value in found.items())}

    def training(
        shape: str, kind: str, rows: str, checkpointing: bool | str, compiled: bool = False
    ) -> Callable[[], Any]:
        def run() -> dict[str, Any]:
            sides = gpu_training.measure_training(shape, kind, rows, checkpointing, peaks(), card, compiled)
            told = "; ".join(f"{name}: {tell_training(side)}" for name, side in sides.items())
            return {"result": sides, "told": told}

        return run

    def decoding(shape: str, batches: Sequence[int], compile_for: Sequence[int] = ()) -> Callable[[], Any]:
        def run() -> dict[str, Any]:
            found = gpu_speed.measure_decoding(shape, batches, peaks(), card, compile_for)
            return {"result": found, "told": "; ".join(f"{name}: {tell_decoding(one)}" for name, one in found.items())}

        return run

    def grpo() -> dict[str, Any]:
        found = gpu_speed.measure_grpo("qwen3-0.6b", card)
        return {"result": found, "told": ", ".join(f"{key} {short(value)}" for key, value in found["median"].items())}

    def profile() -> dict[str, Any]:
        found = gpu_speed.profile_parts("qwen3-0.6b", card)
        return {"result": found, "told": f"{sum(map(len, found.values()))} kernels, see below"}

    return [
        Step("facts", 5, facts),
        Step("training qwen3-0.6b full short", 30, training("qwen3-0.6b", "full", "short", False)),
        Step("training qwen2.5-7b lora short", 35, training("qwen2.5-7b", "lora", "short", False)),
        Step("decoding qwen3-0.6b", 35, decoding("qwen3-0.6b", (1, 64, 16, 256))),
        Step("grpo qwen3-0.6b", 25, grpo),
        Step("training llama-3.2-1b lora short", 15, training("llama-3.2-1b", "lora", "short", False)),
        Step("decoding qwen2.5-7b", 25, decoding("qwen2.5-7b", (1, 64))),
        Step("training qwen3-0.6b full long", 12, training("qwen3-0.6b", "full", "long", False)),
        Step("training qwen2.5-7b lora long checkpointing", 25, training("qwen2.5-7b", "lora", "long", True)),
        Step("profile qwen3-0.6b", 20, profile),
        Step("training llama-3.2-1b full short", 15, training("llama-3.2-1b", "full", "short", False)),
        Step("decoding llama-3.2-1b", 30, decoding("llama-3.2-1b", (1, 64, 16, 256))),
        Step("training qwen2.5-7b lora long", 15, training("qwen2.5-7b", "lora", "long", False)),
        Step("training qwen3-0.6b full short compiled", 60, training("qwen3-0.6b", "full", "short", False, True)),
        Step("decoding qwen3-0.6b compiled", 70, decoding("qwen3-0.6b", (64,), (64,))),
    ]


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tell_training(side: dict[str, Any]) -> str:
    if "seconds" not in side:
        return str(side.get("skipped") or side.get("error"))
    return f"{side['seconds']:.3f} s, {side['tokens_per_second']:.0f} tokens/s, {side['mfu']:.1%}"


def tell_decoding(one: dict[str, Any]) -> str:
    if "step_seconds" not in one:
        return str(one.get("error"))
    return f"{one['tokens_per_second']:.0f} tokens/s, {1e3 * one['step_seconds']:.2f} ms a step"


def run_step(step: Step, record: Record) -> None:
    from gpu_finding import Skipped

    begin = time.monotonic()
    try:
        values = step.run()
    except Skipped as reason:
        record.add(step.title, "skipped", begin, told=str(reason))
        return
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        status = "FAILED" if step.part in CORRECTNESS else "broken"
        record.add(step.title, status, begin, error=f"{type(error).__name__}: {error}"[:400], traceback=lines[-40:])
        print("\n".join(f"         {line}" for line in lines[-8:]), flush=True)
        return
    record.add(step.title, "FAILED" if values.get("faults") else "ok", begin, **values)


def is_alive(card: Any) -> bool:
    """After an illegal memory access nothing works any more in a process."""
    try:
        card.free()
        card.synchronise()
    except Exception:
        return False
    return True


def begin_again(args: argparse.Namespace, clock: Clock) -> None:
    """The same cases in a new process, without those that are done."""
    print("the device does not answer any more in this process; going on in a new one", flush=True)
    again = [sys.executable, __file__, *args.given, "--out", str(args.out), "--elapsed", f"{clock.elapsed + 1:.0f}"]
    sys.stdout.flush()
    os.execv(sys.executable, again)


def give_up(record: Record, running: list[str]) -> None:
    """The time is long over and a case still runs: what is known is shown, and the process ends."""
    title = running[-1] if running else "imports"
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    lines = [line.strip() for line in traceback.format_stack(frame)] if frame else []
    record.add(title, "FAILED" if title.split(" ")[0] in CORRECTNESS else "broken", time.monotonic(),
               error="it still ran when the time was over", traceback=lines[-20:])  # fmt: skip
    print("\n".join(lines[-6:]), flush=True)
    finish(record)
    os._exit(DIED)


def finish(record: Record) -> None:
    from gpu_table import print_tables

    try:
        print_tables(record.values)
    except Exception:  # the JSON file has the numbers
        traceback.print_exc()
    print(f"written: {record.path}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="correctness on small shapes, on the CPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts, or words of a case's name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), help="default: AURIFY_DTYPE, or both")
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit is left out, and named")
    parser.add_argument("--out", type=Path, help="JSON file; default: gpu_check.json in $OUT, in runs/ or here")
    parser.add_argument("--elapsed", type=float, default=0.0, help=argparse.SUPPRESS)  # see begin_again
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given)
    args.given = given
    wanted = args.dtype or os.environ.get("AURIFY_DTYPE") or "both"
    args.dtypes = [wanted] if wanted in ("float32", "bfloat16") else ["bfloat16", "float32"]
    if args.out is None:
        folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else Path("runs") if Path("runs").is_dir() else Path()
        args.out = folder / "gpu_check.json"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


def choose_steps(args: argparse.Namespace, card: Any) -> list[Step]:
    correct, speed = correctness_steps(args, card), speed_steps(card)
    steps = [speed[0], *correct, *speed[1:]]  # facts first: they take a moment

    def named(step: Step, name: str) -> bool:
        return name == step.part if name in (*CORRECTNESS, *SPEED) else name in step.title

    for name in args.only:
        if not any(named(step, name) for step in steps):
            raise SystemExit(f"--only {name}: no such part; there are {', '.join((*CORRECTNESS, *SPEED))}")
    if args.only:
        return [step for step in steps if any(named(step, name) for name in args.only)]
    return steps[: 1 + len(correct)] if args.cpu else steps


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    clock, running = Clock(args.minutes, args.elapsed), list[str]()
    import torch

    if not args.cpu and not torch.cuda.is_available():
        print("torch sees no GPU here; --cpu runs the correctness part on small shapes")
        return 2
    if args.cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # small products are faster on one core
    import transformers
    from gpu_models import Card

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of names that newer versions have changed
    card = Card("cpu" if args.cpu else "cuda")
    record = Record(args.out, card.device.type)
    if args.elapsed and args.out.exists():
        record.values = json.loads(args.out.read_text())
    logging.getLogger("aurify").addHandler(Warnings(record, running))
    if card.cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        args.dtypes = ["float32"]
    timer = threading.Timer(max(1.0, clock.budget - clock.elapsed + GRACE), give_up, (record, running))
    timer.daemon = True
    timer.start()
    steps = choose_steps(args, card)
    alone = all(step.part in CORRECTNESS or step.part == "facts" for step in steps)
    for step in steps:
        if step.title in record.values["cases"]:
            continue
        if not clock.fits(step.seconds, step.part in CORRECTNESS, alone):
            record.add(step.title, "skipped", time.monotonic(), told="no time left for it: --minutes")
            continue
        running.append(step.title)
        if step.part in SPEED:
            card.forget_compiled()
        run_step(step, record)
        if not is_alive(card):
            begin_again(args, clock)
    timer.cancel()
    finish(record)
    if not record.failed:
        return 0
    print(f"not correct: {len(record.failed)} cases: {'; '.join(record.failed)}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""How many runs a second the sandbox of the code reward does, one after the other and several at once.

python benchmarks/sandbox.py --out docs/data/sandbox.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aurify.sandbox.sandbox import (
    Backend,
    Limits,
    explain_sandbox_failure,
    read_sandbox_outcome,
    run_tests,
    start_sandbox,
)

PROGRAM = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add([], [1]) == [1]"]


def tests() -> None:
    assert run_tests(PROGRAM, TESTS).passed == 3


def script_with(kind: Backend) -> Callable[[], None]:
    def run() -> None:
        process = start_sandbox({"role": "script", "code": "print(1)"}, Limits(), using=kind)
        assert read_sandbox_outcome(process, Limits()).stdout == "1\n"

    return run


def rate(run: Callable[[], None], num_threads: int, seconds: float) -> float:
    """Runs a second."""
    run()
    begin = time.perf_counter()

    def until_the_end(_: int) -> int:
        num = 0
        while time.perf_counter() - begin < seconds:
            run()
            num += 1
        return num

    with ThreadPoolExecutor(num_threads) as pool:
        total = sum(pool.map(until_the_end, range(num_threads)))
    return total / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--out", type=Path, help="write the figures, with the command, to this JSON file")
    args = parser.parse_args()
    num_processors = os.cpu_count() or 1
    rows: list[tuple[str, Callable[[], None]]] = []
    kinds: tuple[Backend, ...] = ("bubblewrap", "landlock")
    for kind in kinds:
        if problem := explain_sandbox_failure(kind):
            print(f"{kind}: {problem}")
        else:
            rows.append((f"a script, {kind}", script_with(kind)))
    rows.append(("a program and its 3 tests", tests))
    print(f"{'runs a second':28} {'one at a time':>14} {f'{num_processors} at a time':>14}")
    results = {}
    for name, run in rows:
        alone, together = (rate(run, num, args.seconds) for num in (1, num_processors))
        print(f"{name:28} {alone:14.1f} {together:14.1f}", flush=True)
        results[name] = {"one at a time": alone, f"{num_processors} at a time": together}
    if args.out:
        facts = {"command": " ".join(["python", *sys.argv]), "runs_a_second": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How many runs a second the sandbox of the code reward does, one after the other and several at once.

python benchmarks/sandbox.py [seconds for each row]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aurify.rewards.sandbox import Backend, Limits, finish, run_tests, start, works

PROGRAM = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add([], [1]) == [1]"]


def tests() -> None:
    assert run_tests(PROGRAM, TESTS).passed == 3


def script_with(kind: Backend) -> Callable[[], None]:
    def run() -> None:
        process = start({"role": "script", "code": "print(1)"}, Limits(), using=kind)
        assert finish(process, Limits()).stdout == "1\n"

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
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    num_processors = os.cpu_count() or 1
    rows: list[tuple[str, Callable[[], None]]] = []
    kinds: tuple[Backend, ...] = ("bubblewrap", "landlock")
    for kind in kinds:
        if problem := works(kind):
            print(f"{kind}: {problem}")
        else:
            rows.append((f"a script, {kind}", script_with(kind)))
    rows.append(("a program and its 3 tests", tests))
    print(f"{'runs a second':28} {'one at a time':>14} {f'{num_processors} at a time':>14}")
    for name, run in rows:
        print(f"{name:28} {rate(run, 1, seconds):14.1f} {rate(run, num_processors, seconds):14.1f}", flush=True)


if __name__ == "__main__":
    main()

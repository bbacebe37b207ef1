"""Our side of two checkouts, in turns: is the new one slower?

    git worktree add /tmp/old COMMIT
    python benchmarks/versions.py /tmp/old sft-lora grpo-lora sample --dtype float32 --out docs/data/versions.json

Prints the steps' seconds and the ratio of their medians, new to old. Both run with this environment's packages, on the
same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import drive
from drive import CASES, Side, case_name
from work import make_work

ROOT = Path(__file__).resolve().parents[1]


def start(checkout: Path, name: str, arguments: list[str], folder: Path) -> Side:
    """drive.Side for the sources and the benchmark of a checkout."""
    held, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(checkout / "src")
    here, drive.HERE = drive.HERE, checkout / "benchmarks"
    try:
        (folder / name).mkdir()
        return Side.start("aurify", arguments, folder / name)
    finally:
        drive.HERE = here
        os.environ.pop("PYTHONPATH")
        if held is not None:
            os.environ["PYTHONPATH"] = held


def compare(case: str, old: Path, arguments: list[str], repeats: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sides: dict[str, Side] = {}
        try:
            for name, checkout in (("old", old), ("new", ROOT)):
                sides[name] = start(checkout, name, [case, *arguments], Path(folder))
                sides[name].tell("step")  # allocations, caches, first-use checks
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(repeats):
                for name, side in sides.items():
                    seconds[name].append(side.tell("step")["seconds"])
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the other checkout")
    parser.add_argument("cases", nargs="+", type=case_name, metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    from aurify.models.model import load_tokenizer
    from aurify.models.names import resolve_model

    folder, found = resolve_model(args.model).source, {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work.json"
        make_work(load_tokenizer(folder)).write(work)
        arguments = [folder, str(work), args.dtype]
        for case in args.cases:
            found[case] = compare(case, args.old.resolve(), arguments, args.repeats)
            ratio = statistics.median(found[case]["new"]) / statistics.median(found[case]["old"])
            print(case, {name: [round(s, 2) for s in values] for name, values in found[case].items()}, end=" ")
            print(f"new / old {ratio:.2f}", flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"command": " ".join(["python", *sys.argv]), "dtype": args.dtype, "seconds": found}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

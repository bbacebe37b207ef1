"""A task at which the model sometimes succeeds: GRPO, which forgets every answer after one update, against ExGRPO,
which takes its own past successes up again.

    python examples/replay.py --out replay.json             # SmolLM2-135M, two methods, three seeds: half an hour
    python examples/replay.py --methods exgrpo --seeds 1
    python examples/replay.py --model random:tiny --tokens 3000 --start 0 --seeds 1

New questions without end, as above, leave little for old ones to teach; both methods may then sample the same number
of tokens. With --questions the same few come again and again, half of them of medium difficulty and half hard, for so
many --epochs; both methods may then sample the same number of answers, the epochs that GRPO needs:

    python examples/replay.py --questions 64 --epochs 6 --start 0.05 --out replay_finite.json      # some hours
    python examples/replay.py --questions 8 --epochs 1 --seeds 1 --eval-tasks 8 --model random:tiny # a minute: it works
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

from comparison import Learner, arguments, compare

from aurify import tasks
from aurify.algorithms.exgrpo import ExGRPO
from aurify.algorithms.grpo import GRPO
from aurify.pipeline.recipe import ReplayOptions
from aurify.tasks.taskset import TaskSet, listed
from aurify.types import Task

DRAWN = 0  # the seed of the fixed questions: all runs of a comparison train the same ones


def main(options: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = arguments(__doc__, methods="grpo,exgrpo", tokens=10_000, prompts=4, completions=8, max_tokens=16, lr=2e-4)
    parser.add_argument("--count", type=int, default=4, help="numbers of which the largest is asked for")
    parser.add_argument("--share", type=float, default=0.5, help="of the prompts, from the buffer")
    parser.add_argument("--start", type=float, default=0.2, help="success rate at which the buffer starts")
    parser.add_argument("--scale", default="none", choices=("none", "group"), help="of the advantages")
    parser.add_argument("--questions", type=int, help="train only so many, again and again")
    parser.add_argument("--epochs", type=int, default=6, help="over these; --tokens then has no effect")
    parser.add_argument("--medium", type=int, default=4, help="numbers in one half of the questions")
    parser.add_argument("--hard", type=int, default=8, help="numbers in the other half")
    args = parser.parse_args(options)
    if args.questions is not None and (args.questions < 2 or args.epochs < 1):
        parser.error(f"--questions {args.questions} must be at least 2 and --epochs {args.epochs} at least 1")
    budget = {"sampled": args.tokens}
    if args.questions:
        budget = {"answers": args.questions * args.completions * args.epochs}

    def run(learner: Learner, method: str) -> None:
        if method == "grpo":
            learner.explore(GRPO(scale=args.scale), **budget)
        elif method == "exgrpo":
            past = ReplayOptions(share=args.share, start=args.start)
            learner.explore(ExGRPO(scale=args.scale), **budget, past=past)
        else:
            raise SystemExit(f"--methods: unknown method {method!r}; known: grpo, exgrpo")

    if not args.questions:
        return compare(args, tasks.make("largest_number", count=args.count), run)
    taskset = fixed_questions(args)
    return compare(args, taskset, run, questions=list(taskset.train(DRAWN)))


def fixed_questions(args: argparse.Namespace) -> TaskSet:
    """Half medium, half hard, to train and to hold out; no held-out question is trained."""
    sets = [tasks.make("largest_number", count=count) for count in (args.medium, args.hard)]
    sizes = [args.questions - args.questions // 2, args.questions // 2]
    chosen = [task for taskset, size in zip(sets, sizes, strict=True) for task in different(taskset, size)]
    heldout = [task for taskset in sets for task in taskset.heldout[: (args.eval_tasks + 1) // 2]]
    random.Random(DRAWN).shuffle(heldout)
    return listed("fixed_questions", chosen, sets[0].rubric, heldout=heldout)


def different(taskset: TaskSet, num: int) -> list[Task]:
    chosen: dict[str, Task] = {}
    for task in taskset.train(DRAWN):
        chosen.setdefault(task.id, task)
        if len(chosen) == num:
            break
    return list(chosen.values())


if __name__ == "__main__":
    main()

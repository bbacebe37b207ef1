"""A task at which the model sometimes succeeds: GRPO, which forgets every answer after one update, against ExGRPO,
which takes its own past successes up again. Both may sample the same number of tokens.

    python examples/replay.py --log replay.jsonl            # SmolLM2-135M, two methods, three seeds: half an hour
    python examples/replay.py --methods exgrpo --seeds 1
    python examples/replay.py --model random:tiny --tokens 3000 --start 0 --seeds 1
"""

from __future__ import annotations

from comparison import Learner, arguments, compare

from aurify import tasks
from aurify.algorithms.exgrpo import ExGRPO
from aurify.algorithms.grpo import GRPO
from aurify.loops.replay import ReplayOptions


def main() -> None:
    parser = arguments(
        __doc__, methods="grpo,exgrpo", tokens=10_000, prompts=4, completions=8, max_tokens=16, lr=2e-4
    )
    parser.add_argument("--count", type=int, default=4, help="numbers of which the largest is asked for")
    parser.add_argument("--share", type=float, default=0.5, help="of the prompts, from the buffer")
    parser.add_argument("--start", type=float, default=0.2, help="success rate at which the buffer starts")
    parser.add_argument("--scale", default="none", choices=("none", "group"), help="of the advantages")
    args = parser.parse_args()

    def run(learner: Learner, method: str) -> None:
        if method == "grpo":
            learner.explore(GRPO(scale=args.scale), sampled=args.tokens)
        elif method == "exgrpo":
            past = ReplayOptions(share=args.share, start=args.start)
            learner.explore(ExGRPO(scale=args.scale), sampled=args.tokens, past=past)
        else:
            raise SystemExit(f"--methods: unknown method {method!r}; known: grpo, exgrpo")

    compare(args, tasks.make("largest_number", count=args.count), run)


if __name__ == "__main__":
    main()

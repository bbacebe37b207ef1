"""A task at which the model never succeeds by itself: what traces of somebody who can are worth, by how they are used.

    python examples/guided.py --out guided.json             # SmolLM2-135M, five methods, three seeds: an hour
    python examples/guided.py --methods luffy --seeds 1     # one run: about five minutes
    python examples/guided.py --model random:tiny --task addition --size 1 --tokens 2000 --seeds 1

    grpo           its own answers alone: no success, so nothing to learn
    luffy          one answer of each group is a trace, with the shaped surrogate
    sft            imitates the traces, and samples nothing
    rl_sft         GRPO on its own answers plus the mean negative log-likelihood of the traces
    sft_then_rl    the first half of the tokens imitation, the second half GRPO

Every run gets the same number of trained tokens: those of all answers in its groups, traces included.
"""

from __future__ import annotations

from comparison import Learner, arguments, compare

from aurify import tasks
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.luffy import LUFFY
from aurify.pipeline.recipe import GuidanceOptions

SIZES = {"reverse_words": "count", "sorting": "count", "addition": "digits"}
METHODS = "grpo,luffy,sft,rl_sft,sft_then_rl"


def main() -> None:
    parser = arguments(__doc__, methods=METHODS, tokens=15_000, completions=4, max_tokens=16, lr=4e-4)
    parser.add_argument("--task", default="reverse_words", choices=SIZES)
    parser.add_argument("--size", type=int, default=4, help="words to reverse, numbers to sort, digits to add")
    parser.add_argument("--num-off", type=int, default=1, help="traces in a group")
    parser.add_argument("--gamma", type=float, default=0.1, help="of LUFFY's shaping")
    parser.add_argument("--sft-coef", type=float, default=1.0, help="of the traces in rl_sft")
    parser.add_argument("--sft-lr", type=float, default=4e-4)
    parser.add_argument("--sft-batch", type=int, default=16)
    args = parser.parse_args()

    def run(learner: Learner, method: str) -> None:
        guidance = GuidanceOptions(demonstrations=True, num_off=args.num_off)
        if method == "grpo":
            learner.explore(GRPO(scale="none"), trained=args.tokens)
        elif method == "luffy":
            learner.explore(LUFFY(gamma=args.gamma), trained=args.tokens, guidance=guidance)
        elif method == "rl_sft":
            learner.explore(LUFFY(sft_coef=args.sft_coef), trained=args.tokens, guidance=guidance)
        elif method == "sft":
            learner.imitate(args.tokens, args.sft_lr, args.sft_batch)
        elif method == "sft_then_rl":
            learner.imitate(args.tokens // 2, args.sft_lr, args.sft_batch)
            learner.explore(GRPO(scale="none"), trained=args.tokens - learner.tokens_trained)
        else:
            raise SystemExit(f"--methods: unknown method {method!r}; known: {METHODS}")

    compare(args, tasks.make(args.task, **{SIZES[args.task]: args.size}), run)


if __name__ == "__main__":
    main()

"""Five ways to learn from preferences, on the same pairs of Anthropic's HH-RLHF, from the same start: does each raise
the reward margin on pairs it has not seen?

    python examples/preferences_hh.py harmless-base-test.jsonl.gz --out preferences.json  # SmolLM2-135M: 10 minutes
    python examples/preferences_hh.py FILE --model random:tiny --steps 3 --methods dpo,kto

The file has one {"chosen": transcript, "rejected": transcript} a line. Two margins are printed, because the methods
mean different things by reward: how much likelier the model finds the chosen answer per token, before and after (what
SimPO and ORPO train), and how much its log-prob rose over the start's compared with the rejected one's (what DPO, IPO
and KTO train; 0 before).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aurify.algorithms.dpo import DPO
from aurify.algorithms.kto import KTO
from aurify.algorithms.orpo import ORPO
from aurify.algorithms.simpo import SimPO
from aurify.data.encode import encode_data
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig
from aurify.errors import UserError
from aurify.models.model import load_model
from aurify.renderer import Renderer
from aurify.types import Algorithm, Datum, Message, prepared

METHODS: dict[str, Algorithm] = {
    "dpo": DPO(),
    "ipo": DPO(loss_type="ipo"),
    "simpo": SimPO(),
    "orpo": ORPO(beta=1.0),  # at the paper's 0.1 a dozen steps would mostly imitate
    "kto": KTO(),
}
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

Pair = tuple[Datum, Datum]  # chosen, rejected


@dataclass(frozen=True)
class Margins:
    """Of held-out pairs: log-prob per token, and log-prob summed, chosen minus rejected."""

    per_token: list[float]
    summed: list[float]


def transcript(text: str) -> list[Message]:
    """Messages out of "\\n\\nHuman: ...\\n\\nAssistant: ...", which is how the file writes a conversation."""
    messages: list[Message] = []
    for part in text.split("\n\n"):
        speaker, _, rest = part.partition(":")
        if speaker in SPEAKERS:
            messages.append({"role": SPEAKERS[speaker], "content": rest.strip()})
        elif messages:  # a blank line inside of what somebody said
            messages[-1]["content"] += "\n\n" + part
    return messages


def answer(messages: Sequence[Message]) -> str:
    """What the assistant says last; "" where it does not have the last word."""
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Pairs whose transcripts differ in the last answer alone; the file has a few others."""
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            pair = json.loads(line)
            chosen, rejected = transcript(pair["chosen"]), transcript(pair["rejected"])
            answers = [answer(messages) for messages in (chosen, rejected)]
            if chosen[:-1] == rejected[:-1] and all(answers) and answers[0] != answers[1]:
                rows.append({"prompt": chosen[:-1], "chosen": answers[0], "rejected": answers[1]})
    return rows


def pairs_of(rows: Sequence[dict[str, Any]], renderer: Renderer, max_tokens: int, num: int) -> list[Pair]:
    """The first `num` pairs that are short enough."""
    rendered = (tuple(encode_data([row], renderer, "pairs")) for row in rows)
    short = (pair for pair in rendered if max(len(datum.tokens) for datum in pair) <= max_tokens)
    pairs = [(replace(c, unit=k), replace(r, unit=k)) for k, (c, r) in enumerate(islice(short, num))]
    if len(pairs) < num:
        raise UserError(
            f"only {len(pairs)} pairs have at most {max_tokens} tokens; {num} are wanted; raise --max-tokens"
        )
    return pairs


def margins(engine: Engine, pairs: Sequence[Pair]) -> Margins:
    data = [datum for pair in pairs for datum in pair]
    sums = [sum(row) for row in engine.logprobs(data)]
    means = [total / sum(map(bool, datum.weights)) for total, datum in zip(sums, data, strict=True)]
    return Margins(differences(means), differences(sums))


def differences(values: Sequence[float]) -> list[float]:
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]


def gather_batch(pairs: Sequence[Pair], labels: bool) -> list[Datum]:
    """Pairs as they are; or, for a method that wants single answers with a label, all chosen ones before all rejected
    ones, so that neighbours answer different prompts."""
    if not labels:
        return [datum for pair in pairs for datum in pair]
    single = [(datum, label) for place, label in ((0, 1.0), (1, -1.0)) for datum in (pair[place] for pair in pairs)]
    return [replace(datum, unit=-1, label=label) for datum, label in single]


def train(engine: Engine, algorithm: Algorithm, pairs: Sequence[Pair], args: argparse.Namespace) -> None:
    for step in range(args.steps):
        begin = time.perf_counter()
        chosen = pairs[step * args.pairs : (step + 1) * args.pairs]
        data = gather_batch(chosen, algorithm.learns_from == "labels")
        if "ref_logprobs" in algorithm.needs:
            known = engine.logprobs(data, reference=True)
            data = [replace(datum, ref_logprobs=values) for datum, values in zip(data, known, strict=True)]
        metrics = engine.forward_backward(prepared(algorithm, data, engine), algorithm)
        engine.optim_step(args.lr)
        seconds = time.perf_counter() - begin
        print(f"  step {step + 1}: loss {metrics['loss']:.3f}, margin {metrics['reward/margin']:+.3f}, {seconds:.1f} s")


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[Margins, Margins]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8, help="a step")
    parser.add_argument("--heldout", type=int, default=60, help="pairs")
    parser.add_argument("--max-tokens", type=int, default=160, help="of prompt and answer; longer pairs are left out")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter; its alpha is twice that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write every margin, with the command, to this JSON file")
    args = parser.parse_args(arguments)
    chosen = args.methods.split(",")
    if unknown := set(chosen) - set(METHODS):
        parser.error(f"unknown method {sorted(unknown)[0]!r}; there are {', '.join(METHODS)}")

    rows = rows_of(args.file)
    random.Random(args.seed).shuffle(rows)
    pairs: list[Pair] = []
    results = {}
    table: list[tuple[str, ...]] = [
        ("method", "per token before", "after", "likelier before", "after", "summed, over the start", "seconds")
    ]
    for name in chosen:
        print(f"{name}: {METHODS[name]}", flush=True)
        begin = time.perf_counter()
        model = load_model(args.model, seed=args.seed)
        engine = Engine(
            model, lora=LoraConfig(rank=args.rank, alpha=2 * args.rank), optim=OptimConfig(lr=args.lr), seed=args.seed
        )
        num = args.heldout + args.steps * args.pairs
        pairs = pairs or pairs_of(rows, Renderer(engine.tokenizer), args.max_tokens, num)
        heldout = pairs[: args.heldout]
        before = margins(engine, heldout)
        train(engine, METHODS[name], pairs[args.heldout :], args)
        after = margins(engine, heldout)
        results[name] = before, after
        table.append(row_of(name, before, after, time.perf_counter() - begin))
        engine.close()
    print(
        f"\n{args.heldout} held-out pairs, {args.steps} steps of {args.pairs} pairs, lr {args.lr:g}, +- standard error"
    )
    print(markdown(table))
    if args.out:
        write_results(args, results)
    return results


def write_results(args: argparse.Namespace, results: dict[str, tuple[Margins, Margins]]) -> None:
    """What the table in docs/results.md is made of."""
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "settings": {name: str(value) for name, value in vars(args).items() if name not in ("out", "file")},
        "methods": {name: str(METHODS[name]) for name in results},
        "margins": {name: {"before": asdict(old), "after": asdict(new)} for name, (old, new) in results.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


def row_of(name: str, before: Margins, after: Margins, seconds: float) -> tuple[str, ...]:
    risen = [new - old for new, old in zip(after.summed, before.summed, strict=True)]
    error = statistics.stdev(risen) / len(risen) ** 0.5 if len(risen) > 1 else 0.0
    return (
        name,
        f"{statistics.fmean(before.per_token):+.4f}",
        f"{statistics.fmean(after.per_token):+.4f}",
        f"{statistics.fmean(margin > 0 for margin in before.per_token):.2f}",
        f"{statistics.fmean(margin > 0 for margin in after.per_token):.2f}",
        f"{statistics.fmean(risen):+.2f} +- {error:.2f}",
        f"{seconds:.0f}",
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


if __name__ == "__main__":
    main()

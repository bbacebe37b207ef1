"""What conversations of many turns cost, with sessions and without, in turns.

    python benchmarks/sessions.py --out docs/data/sessions.json

Each conversation is a question, then turns of 64 sampled tokens and of what an environment says (240 tokens of this
repository's documentation, as a search would find them). End tokens are off, so both sides sample equally many. Both
have the same seeds; the tokens are the same but where a random number falls between two roundings of a probability."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from aurify.engine.engine import Engine
from aurify.models.model import ModelConfig, load_model
from aurify.samplers.cache import Extension, Prefill
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.sampler import Session
from aurify.types import SamplingParams

SAMPLED, SAID = 64, 240  # tokens of a turn, of the policy and of the environment
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--conversations", type=int, default=4, help="at the same time, of one group")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    def keep(record: dict[str, Any]) -> None:
        """After each round, since a run takes long."""
        if args.out is not None:
            args.out.write_text(json.dumps(record, indent=1) + "\n")

    print(describe(asyncio.run(measure(args.model, args.turns, args.conversations, args.repeats, keep))))


async def measure(
    model: str, turns: int, conversations: int, repeats: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    engine = Engine(load_model(ModelConfig(model)), trainable=False)
    sampler = InProcessSampler(engine)
    sampler.stop_tokens = frozenset()
    sampler.prepare()
    prefilled: list[int] = []

    def count(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        if isinstance(options.get("layout"), Prefill | Extension):
            prefilled.append(options["layout"].tokens.numel())

    engine.body.decoder.register_forward_pre_hook(count, with_kwargs=True)
    said = read_texts(engine.tokenizer, turns)
    record: dict[str, Any] = {
        "model": model,
        "dtype": str(engine.body.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "turns": turns,
        "conversations": conversations,
        "rounds": [],
    }
    first: list[list[int]] = []
    try:
        await play(sampler, said[:3], 1, True)  # warm
        for _ in range(repeats):
            for sessions in (True, False):
                prefilled.clear()
                began, begun = time.monotonic(), time.process_time()
                played = await play(sampler, said, conversations, sessions)
                seconds, processor = time.monotonic() - began, time.process_time() - begun
                record["tokens"] = [len(tokens) for tokens in played]
                first = first or played
                record["rounds"].append(
                    {
                        "sessions": sessions,
                        "seconds": seconds,
                        "processor_seconds": processor,  # of all cores; others on the machine do not count
                        "prefilled": sum(prefilled),
                        "same_as_first": share_same(first, played),
                    }
                )
                keep(record)
                print(f"{'with' if sessions else 'without'} sessions: {seconds:.1f} s", flush=True)
    finally:
        await sampler.close()
    return record


def read_texts(tokenizer: Any, turns: int) -> list[list[int]]:
    """The question, and what the environment says after each turn but the last."""
    text = "\n\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    tokens = tokenizer(text[: 8 * SAID * turns], add_special_tokens=False).input_ids
    return [tokens[SAID * turn : SAID * (turn + 1)] for turn in range(turns)]


async def play(sampler: InProcessSampler, said: list[list[int]], conversations: int, sessions: bool) -> list[list[int]]:
    """The tokens of each conversation."""

    async def converse(number: int) -> list[int]:
        tokens: list[int] = []
        session = Session()
        for turn, text in enumerate(said):
            tokens = [*tokens, *text]
            with session if sessions else nullcontext():
                params = SamplingParams(max_tokens=SAMPLED, seed=1000 * number + turn)
                [completion] = await sampler.sample(tokens, params)
            tokens = [*tokens, *completion.tokens]
        session.close()
        return tokens

    return await asyncio.gather(*map(converse, range(conversations)))


def share_same(one: list[list[int]], other: list[list[int]]) -> float:
    """Of all tokens, those that are the same in both."""
    pairs = [pair for both in zip(one, other, strict=True) for pair in zip(*both, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def describe(record: dict[str, Any]) -> str:
    lines = ["| side | seconds | sampled tokens / s | tokens prefilled | over tokens of the trajectory |"]
    lines.append("|---|---|---:|---:|---:|")
    sampled, total = record["turns"] * record["conversations"] * SAMPLED, sum(record["tokens"])
    for name, sessions in (("with sessions", True), ("without", False)):
        rounds = [result for result in record["rounds"] if result["sessions"] == sessions]
        seconds = [result["seconds"] for result in rounds]
        prefilled = rounds[0]["prefilled"]
        told = ", ".join(f"{each:.1f}" for each in seconds)
        speed = sampled / statistics.median(seconds)
        lines.append(f"| {name} | {told} | {speed:.0f} | {prefilled:,} | {prefilled / total:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

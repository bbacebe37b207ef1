"""What steps of our own bring, each with and without, in turns in one process: a decoding step in fewer operations than
the model's code makes; cores that decode, or train, sequences of their own instead of sharing every product; two
products with a frozen head instead of three when an adapter is trained; LanceDB's asynchronous interface for the words
of a search.

    python benchmarks/parts.py --out docs/data/parts.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lancedb.query import MatchQuery

from aurify.algorithms.grpo import GRPO
from aurify.engine import logprobs
from aurify.engine.engine import Engine
from aurify.engine.executor import Executor
from aurify.engine.lora import LoraConfig
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.snapshot import run_in_lancedb_loop
from aurify.knowledge.store import CHUNKS, connect_lancedb
from aurify.knowledge.types import Document
from aurify.models.model import ModelConfig, load_model
from aurify.samplers.continuous import Continuous
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.step import PlainStep
from aurify.types import Datum, SamplingParams

NUM_PROMPTS, PROMPT, COMPLETION = 8, 50, 32  # tokens
QUESTIONS = [f"What are the treatments for condition number {k} in adults?" for k in range(100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write every time, with the command, to this JSON file")
    args = parser.parse_args()
    engine = Engine(load_model(ModelConfig(args.model)), lora=LoraConfig())
    generator = random.Random(0)
    prompts = [[generator.randrange(engine.vocabulary) for _ in range(PROMPT)] for _ in range(NUM_PROMPTS)]
    print("| part | with, s | without, s | speed-up |\n|---|---|---|---|")
    results = []
    for n in (8, 4, 1):
        name, new = f"{NUM_PROMPTS * n} sequences of {COMPLETION}", sampling(engine, prompts, n)
        old = sampling(engine, prompts, n, own=False)
        results.append(compare(f"decoding step of our own, {name}", new, old, args.repeats))
        results.append(compare(f"a part a core, {name}", new, sampling(engine, prompts, n, apart=False), args.repeats))
    with tempfile.TemporaryDirectory() as folder:
        new, old = looking_up(Path(folder) / "new"), looking_up(Path(folder) / "old", own=False)
        results.append(compare("asynchronous interface, words of 100 questions", new, old, args.repeats))
    new = training(engine, prompts)
    results.append(
        compare("a row a core, training 64 answers", new, training(engine, prompts, apart=False), args.repeats)
    )
    results.append(
        compare("frozen head, training 64 answers", new, training(engine, prompts, frozen=False), args.repeats)
    )
    if args.out:
        facts = {"command": " ".join(["python", *sys.argv]), "threads": torch.get_num_threads(), "parts": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


def sampling(
    engine: Engine, prompts: list[list[int]], n: int, *, own: bool = True, apart: bool = True
) -> Callable[[], None]:
    sampler = InProcessSampler(engine)
    sampler.stop_tokens = frozenset()
    decoder = sampler.prepare()
    assert isinstance(decoder, Continuous)
    if not own:
        decoder.step = PlainStep(decoder.decoder)
    if not apart:
        decoder.executor.parts = 1

    async def collect() -> None:
        params = SamplingParams(max_tokens=COMPLETION, seed=0)
        await asyncio.gather(*(sampler.sample(prompt, params, n) for prompt in prompts))

    return lambda: asyncio.run(collect())


def training(
    engine: Engine, prompts: list[list[int]], *, apart: bool = True, frozen: bool = True
) -> Callable[[], None]:
    generator = random.Random(0)
    data = [
        Datum(
            prompt + [generator.randrange(engine.vocabulary) for _ in range(COMPLETION)],
            [0.0] * PROMPT + [1.0] * COMPLETION,
            advantages=[generator.gauss(0, 1)] * (PROMPT + COMPLETION),
        )
        for prompt in prompts
        for _ in range(8)
    ]
    two, side_by_side = logprobs.frozen_head_logprobs, engine.executor

    def three(hidden, head, targets, temperature, entropy, chunk):
        return logprobs.LinearLogProb.apply(hidden, head.weight, head.bias, targets, head, temperature, entropy, chunk)

    def step() -> None:
        logprobs.frozen_head_logprobs = two if frozen else three
        engine.executor = side_by_side if apart else Executor()
        engine.forward_backward(data, GRPO())
        engine.optim_step(0.0)
        logprobs.frozen_head_logprobs, engine.executor = two, side_by_side

    return step


def looking_up(folder: Path, *, own: bool = True) -> Callable[[], None]:
    base = KnowledgeBase.create(folder)
    base.add(Document(f"{k}", f"Condition number {k} is treated in adults by treatment {k % 17}.") for k in range(1000))
    table, snapshot = connect_lancedb(folder).open_table(CHUNKS), base.store.snapshot()
    assert snapshot is not None

    def ask() -> None:
        for question in map(MatchQuery, QUESTIONS, repeat("passage")):
            if own:
                query = snapshot.table.query().nearest_to_text(question).select(["_score"]).with_row_id().limit(101)
                run_in_lancedb_loop(query.to_arrow()).result()
            else:
                search = table.search(question, query_type="fts").select(["_score"]).with_row_id(True).limit(101)
                search.to_arrow()

    return ask


def compare(name: str, new: Callable[[], None], old: Callable[[], None], repeats: int) -> dict[str, Any]:
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for side, run in zip(seconds, (new, old), strict=True):
            begin = time.perf_counter()
            run()
            if turn:  # the first is to warm up
                side.append(time.perf_counter() - begin)
    ours, plain = map(statistics.median, seconds)
    print(f"| {name} | {ours:.2f} | {plain:.2f} | {plain / ours:.2f}x |", flush=True)
    return {"part": name, "with": seconds[0], "without": seconds[1]}


if __name__ == "__main__":
    main()

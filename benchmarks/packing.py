"""SFT on GSM8K with LoRA: what some steps do to the held-out loss, and what packed rows gain over padded ones.

    python benchmarks/packing.py ../shared/data/gsm8k/train.jsonl --out docs/data/packing.json

Both sides train on the same batches in turns, the rows in the order of the file; tokens are those of the rows, padding
does not count."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.models.model import load_model
from aurify.renderer import Renderer
from aurify.rows.sources import load_rows
from aurify.types import Datum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heldout", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's first weights")
    parser.add_argument("--out", type=Path, help="write the figures, with the command, to this JSON file")
    args = parser.parse_args()

    sides = {
        name: Engine(load_model(args.model), lora=LoraConfig(rank=16), packing=name == "packed", seed=args.seed)
        for name in ("packed", "padded")
    }
    rows = read(args.file, args.heldout + args.steps * args.batch, Renderer(sides["packed"].tokenizer))
    heldout, train = rows[: args.heldout], rows[args.heldout :]
    before = loss(sides["packed"], heldout)
    speed: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(args.steps):
        batch = train[step * args.batch : (step + 1) * args.batch]
        for name, engine in sides.items():
            begin = time.perf_counter()
            engine.forward_backward(batch, SFT())
            engine.optim_step(args.lr)
            speed[name].append(sum(len(datum.tokens) for datum in batch) / (time.perf_counter() - begin))
    results = {}
    for name, engine in sides.items():
        tokens, after = statistics.median(speed[name][1:] or speed[name]), loss(engine, heldout)
        print(f"{name}: held-out loss {before:.4f} -> {after:.4f}, {tokens:.0f} tokens / s")
        results[name] = {"before": before, "after": after, "tokens_per_second": speed[name]}
    if args.out:
        facts = {"command": " ".join(["python", *sys.argv]), "threads": torch.get_num_threads(), "results": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


def read(path: Path, num: int, renderer: Renderer) -> list[Datum]:
    chats = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        for row in load_rows(path)[:num]  # in the one form that GSM8K has everywhere, see aurify.rows.gsm8k
    ]
    return [Datum(*renderer.conversation(chat)) for chat in chats]  # type: ignore[arg-type]


def loss(engine: Engine, data: list[Datum]) -> float:
    """Mean negative log-likelihood of a trained token, in nats."""
    total = sum(sum(row) for row in engine.logprobs(data))  # 0 where nothing is trained
    return -total / sum(sum(datum.weights) for datum in data)


if __name__ == "__main__":
    main()

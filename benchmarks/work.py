"""The work that every side of a benchmark does: the same token ids, made once and handed over as a JSON file.

    sft       8 rows of GSM8K: question and worked answer in the chat template, loss on the answer
    dpo       8 pairs: the question, its own answer (chosen) and another question's answer (rejected)
    grpo      8 prompts of "largest number", 8 completions each, at most 32 tokens; the reward is a hash of the tokens,
              so that every group has spread and all 64 completions are trained, whatever the model says
    grpo_task the same with the task's own reward: 1 for the largest number. Groups that are all right or all wrong have
              no gradient; a side may leave them out
    sample    64 different prompts, 48 new tokens each, temperature 1, end tokens ignored

Without the GSM8K file the rows are drawn from a small vocabulary, as long as those of the file are.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
NUM_ROWS, NUM_PROMPTS, NUM_COMPLETIONS, NUM_SAMPLES = 8, 8, 8, 64
GRPO_TOKENS, SAMPLE_TOKENS = 32, 48
RANK, ALPHA, LR = 16, 32.0, 1e-5


Reward = Callable[[list[int], str, str], float]  # (tokens, text, answer)


@dataclass
class Row:
    prompt: list[int]
    chosen: list[int]  # with its end token
    rejected: list[int]


@dataclass
class Work:
    rows: list[Row]
    conversations: list[list[dict[str, str]]]  # for GRPO
    prompts: list[list[int]]  # the same, as tokens
    answers: list[str]  # to them
    samples: list[list[int]]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> Work:
        values: dict[str, Any] = json.loads(path.read_text())
        return Work(**{**values, "rows": [Row(**row) for row in values["rows"]]})


def make_work(tokenizer: Any) -> Work:
    from aurify.renderer import Renderer

    renderer = Renderer(tokenizer)
    texts = gsm8k_rows() if GSM8K.is_file() else synthetic_rows()
    answers = [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for _, answer in texts]
    rows = [
        Row(renderer.prompt([{"role": "user", "content": question}]), answers[k], answers[k - 1])
        for k, (question, _) in enumerate(texts)
    ]
    generator = random.Random(0)
    questions, largest = zip(*(largest_number(generator) for _ in range(NUM_SAMPLES)), strict=True)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    samples = [renderer.prompt(messages) for messages in conversations]  # type: ignore[arg-type]
    return Work(rows, conversations[:NUM_PROMPTS], samples[:NUM_PROMPTS], list(largest[:NUM_PROMPTS]), samples)


def gsm8k_rows() -> list[tuple[str, str]]:
    from aurify.rows.sources import load_rows

    rows = load_rows(GSM8K)[:NUM_ROWS]  # in the one form that GSM8K has everywhere, see aurify.rows.gsm8k
    return [(row["question"], row["answer"]) for row in rows]


def synthetic_rows() -> list[tuple[str, str]]:
    generator = random.Random(0)
    words = (
        "a",
        "shop",
        "sells",
        "red",
        "and",
        "blue",
        "boxes",
        "each",
        "day",
        "for",
        "two",
        "dollars",
        "to",
        "friends",
    )
    lengths = [(35, 60), (25, 60), (60, 120), (50, 75), (20, 55), (75, 110), (50, 65), (40, 70)]
    return [tuple(" ".join(generator.choices(words, k=k)) for k in pair) for pair in lengths]  # type: ignore[misc]


def largest_number(generator: random.Random) -> tuple[str, str]:
    numbers = generator.sample(range(1, 100), 5)
    question = f"Which is the largest of these numbers: {', '.join(map(str, numbers))}? Answer with the number."
    return question, str(max(numbers))


def hashed(completion: list[int], text: str, answer: str) -> float:
    return zlib.crc32(json.dumps(completion).encode()) / 2**32


def solved(completion: list[int], text: str, answer: str) -> float:
    return float(re.findall(r"\d+", text)[-1:] == [answer])


REWARDS: dict[str, Reward] = {"grpo": hashed, "grpo_task": solved}

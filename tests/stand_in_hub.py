"""A hub that a machine without one can have: the configurations of the models that our recipes name, each with a
tokenizer of bytes and the chat template of its family, and rows in the form of the data sets that they name. No
weights: a check of a recipe and its memory plan need none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tokenizers_in_code
import torch
from scripts_of_ours import load_script
from transformers import AutoConfig, AutoModelForCausalLM

from aurify.errors import UserError
from aurify.models import catalog, names
from aurify.rows import sources
from aurify.rows.files import build_row

ROOT = Path(__file__).parents[1]
# hub id: its line in scripts/memory_table.py, kind, family of its chat template, context
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("SmolLM2-135M", "llama", "smollm2", 8192),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen2.5-0.5B", "qwen2", "qwen2.5", 32768),
    "Qwen/Qwen2.5-7B-Instruct": ("Qwen2.5-7B", "qwen2", "qwen2.5", 32768),
    "Qwen/Qwen3-4B": ("Qwen3-4B", "qwen3", "qwen3", 40960),
    "Qwen/Qwen3-8B": ("Qwen3-8B", "qwen3", "qwen3", 40960),
    "mistralai/Mistral-7B-Instruct-v0.3": ("Mistral-7B-v0.3", "mistral", "mistral", 32768),
}
QUESTION = 150  # letters, which are tokens here
USER, ASSISTANT = "user", "assistant"


def write_model(hub_id: str, folder: Path, *, tiny: bool = False) -> None:
    """All of a model but its weights. tiny: two small layers of its kind, with random weights."""
    line, kind, family, context = MODELS[hub_id]
    layers, hidden, inner, heads, kv_heads, size, vocabulary, tied, _, _ = load_script("memory_table").FAMILIES[line]
    tokenizer = tokenizers_in_code.family(family)
    if tiny:
        layers, hidden, inner, heads, kv_heads, size, vocabulary = 2, 64, 128, 4, 2, 16, len(tokenizer)
    config = AutoConfig.for_model(
        kind, num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=size, vocab_size=vocabulary, tie_word_embeddings=tied,
        max_position_embeddings=context, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if tiny:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_hub_cache(cache: Path, hub_id: str) -> None:
    """As the client of the hub lays it out."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    write_model(hub_id, folder / "snapshots" / "0123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")


# ---------------------------------------------------------------------- data sets


def make_text(number: int, length: int) -> str:
    return f"{number} {'how many apples are in it? ' * (length // 27 + 1)}"[:length]


def make_gsm8k(numbers: range) -> Iterator[dict[str, Any]]:
    for k in numbers:
        yield {
            "question": make_text(k, QUESTION),
            "answer": f"{make_text(k, 300)} <<2*{k}={2 * k}>>{2 * k}\n#### {2 * k}",
        }


def make_chats(num: int) -> Iterator[dict[str, Any]]:
    """Of many lengths, so that they fill a micro-batch of 1,024 tokens. Some are longer: their last turns are cut."""
    for k in range(num):
        turns = [
            {"content": make_text(k + turn, QUESTION if role == USER else 100 + k * 37 % 700), "role": role}
            for turn in range(1 + k % 3)
            for role in (USER, ASSISTANT)
        ]
        yield {"source": "LessWrong", "messages": turns, "num_turns": len(turns) // 2}


def make_pairs(num: int) -> Iterator[dict[str, Any]]:
    """Some have two equal sides, from which nothing can be learnt."""
    for k in range(num):
        asked = {"content": make_text(k, QUESTION), "role": USER}
        sides = {
            side: [asked, {"content": f"{side if k % 50 else 'Both'}: {make_text(k, 800)}", "role": ASSISTANT}]
            for side in ("chosen", "rejected")
        }
        yield {**sides, "score_chosen": 8.5, "score_rejected": 6.0}


DATA_SETS = {  # name, configuration and split
    ("openai/gsm8k", "main", "train"): lambda: make_gsm8k(range(80)),
    ("openai/gsm8k", "main", "test"): lambda: make_gsm8k(range(80, 120)),
    ("trl-lib/Capybara", None, "train"): lambda: make_chats(200),
    ("trl-lib/ultrafeedback_binarized", None, "train"): lambda: make_pairs(200),
}


def open_hub_rows(name: str, subset: str | None, split: str, *, stream: bool = False) -> sources.Entries:
    make = DATA_SETS.get((name, subset, split))
    if make is None:
        raise UserError(f"data set {name!r} has no split {split!r} of {subset!r} here")
    return [build_row(row, f"{name}/{split}: row {number}") for number, row in enumerate(make())]


@contextmanager
def hub_in_folder(folder: Path) -> Iterator[None]:
    """Inside, hub ids lead to models and data of the stand-in, and the catalogue's model to its configuration."""
    import huggingface_hub.constants

    for hub_id in MODELS:
        write_hub_cache(folder / "hub", hub_id)
    for known in catalog.KNOWN.values():
        write_model(known.hub_id, folder / "cache" / "models" / known.name)
    with (
        patch.object(names, "hub_answers", lambda: False),
        patch.object(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub")),
        patch.object(sources, "open_hub_rows", open_hub_rows),
        patch.dict("os.environ", {"AURIFY_CACHE": str(folder / "cache")}),
    ):
        yield

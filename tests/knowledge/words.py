"""An embedder whose vectors mean something and cost nothing: each word has a random direction, a text is their sum."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from aurify.knowledge.types import Document

WORD = re.compile(r"\w+")


class WordEmbedder:
    name = "words"

    def __init__(self, dim: int = 256, max_tokens: int = 64) -> None:
        self.dim = dim
        self.max_tokens = max_tokens
        self.num_batches = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(WORD.findall(text)) for text in texts]

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.num_batches += 1
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[0] = 1e-3
            for word in WORD.findall(text.lower()):
                row += direction(word, self.dim)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    embed_queries = embed_documents


@cache
def direction(word: str, dim: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dim)


def some_documents(num: int, seed: int = 0) -> list[Document]:
    """Texts of zipf-distributed words, one to several chunks each."""
    draw = np.random.default_rng(seed)
    words = np.array([f"word{number}" for number in range(300)])
    share = 1 / np.arange(1, 301)
    return [
        Document(
            f"folder/{number:03}.txt",
            ". ".join(" ".join(draw.choice(words, 12, p=share / share.sum())) for _ in range(draw.integers(1, 12))),
            title=f"Number {number}",
            source="folder",
            metadata={"number": number, "parity": "odd" if number % 2 else "even"},
        )
        for number in range(num)
    ]

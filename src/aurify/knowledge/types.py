"""What goes into a knowledge base and what comes out of it.

A document is cut into chunks, chunks are embedded and stored, a search returns hits. Everything else in this folder
turns one of these into the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np

Value = str | int | float | bool
Metadata = Mapping[str, Value]
Where = Mapping[str, Value | Sequence[Value] | Mapping[str, Value]]  # see knowledge/where.py
Mode = Literal["dense", "bm25", "hybrid"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text with a name that stays the same when its content changes.

    `id` is a path relative to the folder that was read, a URL, or the id of a row; `source` is what a person asked to
    read, so that whatever has vanished from it can be removed. `format` says how to cut the text: "text", "markdown",
    or a programming language ("python", "go", ...).
    """

    id: str
    text: str
    title: str = ""
    format: str = "text"
    source: str = ""
    metadata: Metadata = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over everything that search can see; equal digests need no second reading."""
        facts = [self.text, self.title, self.format, sorted(self.metadata.items())]
        return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `text` is `document.text[start:end]`, except for an anchor, which sums a whole file up.

    Lines count from 1, `last_line` included. `breadcrumb` is the way down to it: headings, or class and function.
    """

    document: str
    index: int  # within its document, from 0
    text: str
    start: int
    end: int
    first_line: int
    last_line: int
    title: str = ""
    breadcrumb: tuple[str, ...] = ()
    kind: Literal["prose", "definition", "block", "anchor"] = "prose"
    context: str = ""  # goes into the embedding, not into the text: path, imports, docstring
    num_tokens: int = 0  # of text and context, as they were counted for cutting

    @property
    def id(self) -> str:
        return f"{self.document}#{self.index}"

    def pack(self) -> str:
        """As JSON, without the text: that is the end of `to_embedding_text`."""
        return json.dumps(asdict(self) | {"text": len(self.text)})

    @classmethod
    def unpack(cls, packed: str, passage: str) -> Chunk:
        values = json.loads(packed)
        text = passage[len(passage) - values.pop("text") :]
        return cls(**{**values, "breadcrumb": tuple(values["breadcrumb"])}, text=text)

    def to_embedding_text(self) -> str:
        """The text under its title, breadcrumb and context: what is embedded and what BM25 indexes."""
        above = dict.fromkeys(part for part in (self.title, " > ".join(self.breadcrumb), self.context) if part)
        return "\n".join([*above, self.text])


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, best first in its list. `score` orders the list; `scores` and `ranks` tell each stage's part:
    "dense" (cosine), "bm25", "fused", "reranked"; ranks count from 1, and what did not find it is absent."""

    chunk: Chunk
    score: float
    metadata: Metadata = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


class Embedder(Protocol):
    """Turns texts into vectors. Queries and documents may be prefixed differently."""

    name: str
    dim: int
    max_tokens: int  # more than this of a text is not seen

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, dim] float32, each of length 1."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray: ...


class Reranker(Protocol):
    """The second stage: looks at a query and each passage together."""

    name: str

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text, higher is better; scales differ between rerankers."""
        ...


class Retriever(Protocol):
    """Finds passages: `search_many` of a knowledge base, or what `knowledge/adapters.py` opens."""

    def __call__(self, queries: Sequence[str], k: int = 10, /) -> list[list[Hit]]:
        """At most `k` hits for each query, best first."""
        ...

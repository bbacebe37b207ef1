"""Passages that already lie in ChromaDB or FAISS, found through the same protocol as those of a knowledge base: what
serves, measures or trains with one can take the other.

    ChromaPassages.open("chroma/", "notes", load_embedder("all-minilm-l6-v2"))
    FaissPassages.open("wiki.index", "wiki.jsonl", load_embedder("intfloat/e5-base-v2"))

Both search by vectors only, with the embedder that their vectors were made with, and only read. A new knowledge base
does not need them: `aurify ingest` keeps words and vectors together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aurify.errors import UserError
from aurify.knowledge.types import Chunk, Document, Embedder, Hit
from aurify.knowledge.where import Where, matches, parsed

CHROMA_OPERATORS = {"=": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


class Passages(Protocol):
    """What a knowledge base, a Chroma collection and a FAISS index have in common."""

    def search_many(
        self, queries: Sequence[str], limit: int = 10, *, where: Where | None = None
    ) -> list[list[Hit]]: ...


@dataclass
class ChromaPassages:
    """A collection of a local ChromaDB. Conditions are Chroma's own: a number never equals a text."""

    collection: Any
    embedder: Embedder

    @classmethod
    def open(cls, folder: str | Path, collection: str, embedder: Embedder) -> ChromaPassages:
        try:
            import chromadb
        except ImportError:
            raise UserError(
                "passages in ChromaDB need chromadb; install it with: pip install 'aurify[chroma]'"
            ) from None
        if not (Path(folder) / "chroma.sqlite3").is_file():
            raise UserError(f"{folder} holds no ChromaDB (there is no chroma.sqlite3 in it)")
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder), settings=settings)
        names = sorted(held.name for held in client.list_collections())
        if collection not in names:
            raise UserError(f"{folder}: there is no collection {collection!r}; it has {', '.join(names) or 'none'}")
        return cls(client.get_collection(collection, embedding_function=None), embedder)

    def search_many(self, queries: Sequence[str], limit: int = 10, *, where: Where | None = None) -> list[list[Hit]]:
        held = self.collection.count()
        if not queries or not held:
            return [[] for _ in queries]
        found = self.collection.query(
            query_embeddings=self.embedder.embed_queries(queries),
            n_results=min(limit, held),
            where=to_chroma(where),
            include=["documents", "metadatas", "distances"],
        )
        space = (self.collection.configuration.get("hnsw") or {}).get("space", "l2")
        return [
            in_order(
                [
                    hit_of(Document(id, text or "", metadata=metadata or {}), to_cosine(distance, space))
                    for id, text, metadata, distance in zip(*columns, strict=True)
                ]
            )
            for columns in zip(*(found[name] for name in ("ids", "documents", "metadatas", "distances")), strict=True)
        ]


@dataclass
class FaissPassages:
    """A FAISS index and the passages in the order of its vectors, which must have length 1."""

    index: Any
    passages: Sequence[Document]
    embedder: Embedder

    def __post_init__(self) -> None:
        for name, held, wanted in (
            ("vectors", self.index.ntotal, len(self.passages)),
            ("numbers a vector", self.index.d, self.embedder.dim),
        ):
            if held != wanted:
                raise UserError(
                    f"the FAISS index has {held:,} {name}, and {wanted:,} are needed; it must have been made from "
                    f"these passages with embedder {self.embedder.name!r}"
                )

    @classmethod
    def open(cls, index: str | Path, passages: str | Path, embedder: Embedder) -> FaissPassages:
        """`passages` is a JSONL file as Search-R1 has them: "id", and "contents" with the title in its first line."""
        try:
            import faiss
        except ImportError:
            raise UserError("passages in FAISS need faiss; install it with: pip install 'aurify[faiss]'") from None
        for path in (index, passages):
            if not Path(path).is_file():
                raise UserError(f"there is no file {path}; a FAISS index comes with a JSONL file of its passages")
        return cls(faiss.read_index(str(index)), read_passages(Path(passages)), embedder)

    def search_many(self, queries: Sequence[str], limit: int = 10, *, where: Where | None = None) -> list[list[Hit]]:
        if not queries or not self.passages:
            return [[] for _ in queries]
        vectors, asked = self.embedder.embed_queries(queries), min(limit, len(self.passages))
        while True:
            values, rows = self.index.search(np.ascontiguousarray(vectors), asked)
            found = [self._hits(*columns, where) for columns in zip(values, rows, strict=True)]
            if asked == len(self.passages) or all(len(hits) >= limit for hits in found):
                return [hits[:limit] for hits in found]
            asked = min(4 * asked, len(self.passages))  # conditions let too few of them through

    def _hits(self, values: np.ndarray, rows: np.ndarray, where: Where | None) -> list[Hit]:
        import faiss

        space = "ip" if self.index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
        hits = []
        for value, row in zip(values.tolist(), rows.tolist(), strict=True):
            if row < 0:  # an approximate index found no more
                continue
            passage = self.passages[row]
            columns = {"document.id": passage.id, "document.source": passage.source, "document.format": passage.format}
            if matches(where, passage.metadata, columns):
                hits.append(hit_of(passage, value if space == "ip" else to_cosine(value, space)))
        return in_order(hits)


def to_cosine(distance: float, space: str) -> float:
    """Of vectors of length 1; "l2" is squared in both libraries."""
    return 1 - distance / 2 if space == "l2" else 1 - distance


def hit_of(passage: Document, score: float) -> Hit:
    text, score = passage.text, round(score, 6)
    chunk = Chunk(passage.id, 0, text, 0, len(text), 1, text.count("\n") + 1, title=passage.title)
    return Hit(chunk, score, passage.metadata, {"dense": score})


def in_order(hits: list[Hit]) -> list[Hit]:
    hits.sort(key=lambda hit: (-hit.score, hit.chunk.document))
    return [Hit(hit.chunk, hit.score, hit.metadata, hit.scores, {"dense": rank}) for rank, hit in enumerate(hits, 1)]


def to_chroma(where: Where | None) -> dict[str, Any] | None:
    clauses: list[dict[str, Any]] = []
    for key, comparisons in parsed(where):
        parts = [{key: {CHROMA_OPERATORS[sign]: value}} for sign, value in comparisons]
        if isinstance((where or {})[key], Mapping):
            clauses += parts
        else:
            clauses.append({key: {"$in": [value for _, value in comparisons]}})
    if len(clauses) > 1:
        return {"$and": clauses}
    return clauses[0] if clauses else None


def read_passages(path: Path) -> list[Document]:
    passages = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                title, newline, text = row["contents"].partition("\n")
                title, text = (title.strip('"'), text) if newline else ("", title)
                passages.append(Document(str(row["id"]), text, title))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{path}:{number}: expected {{"id": ..., "contents": "title, newline, text"}} ({error!r})'
                ) from None
    return passages

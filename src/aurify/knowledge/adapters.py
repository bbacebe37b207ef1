"""Passages that already lie in ChromaDB or FAISS, as a `Retriever`: whatever takes a knowledge base's `search_many`
takes these.

    search = open_chroma("chroma/", "notes", load_embedder("all-minilm-l6-v2"), where={"year": {"$gte": 2020}})
    search = open_faiss("wiki.index", "wiki.jsonl", load_embedder("intfloat/e5-base-v2"))
    search(["what purrs?"], 3)

Both search by vectors alone, with the embedder that the vectors were made with, and only read. A new knowledge base
does not need them: `aurify ingest` keeps words and vectors together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aurify.errors import UserError
from aurify.files import require
from aurify.knowledge.types import Chunk, Document, Embedder, Hit, Retriever


def open_chroma(
    folder: str | Path, collection: str, embedder: Embedder, where: Mapping[str, Any] | None = None
) -> Retriever:
    """A collection of a local ChromaDB; `where` is a condition in Chroma's own language."""
    chromadb = require("chromadb", "chroma", "to search passages in ChromaDB")
    if not (Path(folder) / "chroma.sqlite3").is_file():
        raise UserError(f"{folder} holds no ChromaDB (there is no chroma.sqlite3 in it)")
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder), settings=settings)
    names = sorted(held.name for held in client.list_collections())
    if collection not in names:
        raise UserError(f"{folder}: there is no collection {collection!r}; it has {', '.join(names) or 'none'}")
    held = client.get_collection(collection, embedding_function=None)
    space = (held.configuration.get("hnsw") or {}).get("space", "l2")

    def search(queries: Sequence[str], k: int = 10, /) -> list[list[Hit]]:
        num = min(k, held.count())
        if not queries or not num:
            return [[] for _ in queries]
        vectors, parts = embedder.embed_queries(queries), ["documents", "metadatas", "distances"]
        found = held.query(query_embeddings=vectors, n_results=num, where=where, include=parts)
        return [
            passages_to_hits(
                (Document(id, text or "", metadata=metadata or {}), distance_to_cosine(distance, space))
                for id, text, metadata, distance in zip(*columns, strict=True)
            )
            for columns in zip(*(found[name] for name in ("ids", *parts)), strict=True)
        ]

    return search


def open_faiss(index: str | Path, passages: str | Path, embedder: Embedder) -> Retriever:
    """`passages` is a JSONL file as Search-R1 has them: "id", and "contents" with the title in its first line."""
    faiss = require("faiss", "faiss", "to search passages in FAISS")
    for path in (index, passages):
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}; a FAISS index comes with a JSONL file of its passages")
    return search_faiss(faiss.read_index(str(index)), load_faiss_passages(Path(passages)), embedder)


def search_faiss(index: Any, passages: Sequence[Document], embedder: Embedder) -> Retriever:
    """`passages` in the order of the index's vectors, which must have length 1."""
    faiss = require("faiss", "faiss", "to search passages in FAISS")
    counts = (("vectors", index.ntotal, len(passages)), ("numbers a vector", index.d, embedder.dim))
    for name, num, wanted in counts:
        if num != wanted:
            raise UserError(
                f"the FAISS index has {num:,} {name}, and {wanted:,} are needed; it must have been made from these "
                f"passages with embedder {embedder.name!r}"
            )
    cosine = index.metric_type == faiss.METRIC_INNER_PRODUCT

    def search(queries: Sequence[str], k: int = 10, /) -> list[list[Hit]]:
        num = min(k, len(passages))
        if not queries or not num:
            return [[] for _ in queries]
        vectors = np.ascontiguousarray(embedder.embed_queries(queries))
        return [
            passages_to_hits(
                (passages[row], value if cosine else distance_to_cosine(value, "l2"))
                for value, row in zip(values.tolist(), rows.tolist(), strict=True)
                if row >= 0  # -1: an approximate index found no more
            )
            for values, rows in zip(*index.search(vectors, num), strict=True)
        ]

    return search


def passages_to_hits(scored: Iterable[tuple[Document, float]]) -> list[Hit]:
    """Best first, equal ones by id."""
    hits = []
    ordered = sorted(scored, key=lambda one: (-round(one[1], 6), one[0].id))
    for rank, (passage, score) in enumerate(ordered, 1):
        text, score = passage.text, round(score, 6)
        chunk = Chunk(passage.id, 0, text, 0, len(text), 1, text.count("\n") + 1, title=passage.title)
        hits.append(Hit(chunk, score, passage.metadata, {"dense": score}, {"dense": rank}))
    return hits


def distance_to_cosine(distance: float, space: str) -> float:
    """Of vectors of length 1; "l2" is squared in both libraries."""
    return 1 - distance / 2 if space == "l2" else 1 - distance


def load_faiss_passages(path: Path) -> list[Document]:
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

"""Passages that already lie in ChromaDB or FAISS, as a `Retriever`: whatever takes a knowledge base's `search_many`
takes these.

    search = open_chroma("chroma/", "notes", load_embedder("all-minilm-l6-v2"))
    search = open_faiss("wiki.index", "wiki.jsonl", load_embedder("intfloat/e5-base-v2"))
    search(["what purrs?"], 3)

Both search by vectors alone, with the embedder that the vectors were made with, and only read. A new knowledge base
does not need them: `aurify ingest` keeps words and vectors together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aurify.errors import UserError
from aurify.files import require
from aurify.knowledge.types import Chunk, Document, Embedder, Hit, Retriever, Where
from aurify.knowledge.where import matches

Scored = Iterable[tuple[Document, float]]
Nearest = Callable[[np.ndarray, int], Iterable[Scored]]  # (vectors, how many) -> passages with cosines for each vector


def open_chroma(folder: str | Path, collection: str, embedder: Embedder) -> Retriever:
    """A collection of a local ChromaDB."""
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

    def nearest(vectors: np.ndarray, num: int) -> Iterator[Scored]:
        parts = ["documents", "metadatas", "distances"]
        found = held.query(query_embeddings=vectors, n_results=num, include=parts)
        for columns in zip(*(found[name] for name in ("ids", *parts)), strict=True):
            yield [
                (Document(id, text or "", metadata=metadata or {}), to_cosine(distance, space))
                for id, text, metadata, distance in zip(*columns, strict=True)
            ]

    return build_retriever(nearest, held.count, embedder)


def open_faiss(index: str | Path, passages: str | Path, embedder: Embedder) -> Retriever:
    """`passages` is a JSONL file as Search-R1 has them: "id", and "contents" with the title in its first line."""
    faiss = require("faiss", "faiss", "to search passages in FAISS")
    for path in (index, passages):
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}; a FAISS index comes with a JSONL file of its passages")
    return search_faiss(faiss.read_index(str(index)), read_passages(Path(passages)), embedder)


def search_faiss(index: Any, passages: Sequence[Document], embedder: Embedder) -> Retriever:
    """`passages` in the order of the index's vectors, which must have length 1."""
    faiss = require("faiss", "faiss", "to search passages in FAISS")
    for name, num, wanted in (
        ("vectors", index.ntotal, len(passages)),
        ("numbers a vector", index.d, embedder.dim),
    ):
        if num != wanted:
            raise UserError(
                f"the FAISS index has {num:,} {name}, and {wanted:,} are needed; it must have been made from these "
                f"passages with embedder {embedder.name!r}"
            )
    cosine = index.metric_type == faiss.METRIC_INNER_PRODUCT

    def nearest(vectors: np.ndarray, num: int) -> Iterator[Scored]:
        for values, rows in zip(*index.search(np.ascontiguousarray(vectors), num), strict=True):
            found = zip(values.tolist(), rows.tolist(), strict=True)
            found = [(value, row) for value, row in found if row >= 0]  # -1: an approximate index found no more
            yield [(passages[row], value if cosine else to_cosine(value, "l2")) for value, row in found]

    return build_retriever(nearest, lambda: len(passages), embedder)


def build_retriever(nearest: Nearest, count: Callable[[], int], embedder: Embedder) -> Retriever:
    def search(queries: Sequence[str], k: int = 10, /, *, where: Where | None = None) -> list[list[Hit]]:
        total = count()
        if not queries or not total:
            return [[] for _ in queries]
        vectors, num = embedder.embed_queries(queries), min(k, total)
        while True:
            found = [to_hits(scored, where) for scored in nearest(vectors, num)]
            if num == total or all(len(hits) >= k for hits in found):
                return [hits[:k] for hits in found]
            num = min(4 * num, total)  # the conditions let too few through

    return search


def to_hits(scored: Scored, where: Where | None) -> list[Hit]:
    """Best first, equal ones by id."""
    found = sorted(((-round(score, 6), passage.id, passage) for passage, score in scored), key=lambda one: one[:2])
    hits: list[Hit] = []
    for score, id, passage in found:
        columns = {"document.id": id, "document.source": passage.source, "document.format": passage.format}
        if matches(where, passage.metadata, columns):
            text = passage.text
            chunk = Chunk(id, 0, text, 0, len(text), 1, text.count("\n") + 1, title=passage.title)
            hits.append(Hit(chunk, -score, passage.metadata, {"dense": -score}, {"dense": len(hits) + 1}))
    return hits


def to_cosine(distance: float, space: str) -> float:
    """Of vectors of length 1; "l2" is squared in both libraries."""
    return 1 - distance / 2 if space == "l2" else 1 - distance


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

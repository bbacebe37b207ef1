"""What a knowledge base stores, and the columns it is stored in. What is searched and asked for by name has a column of
its own; the rest of a chunk is one JSON text, since reading a row costs by its columns. The text of a chunk is the end
of its passage, which is what was embedded and what BM25 indexes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aurify.knowledge.types import Chunk, Metadata


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a stored document beside its chunks."""

    id: str
    digest: str
    source: str = ""
    title: str = ""
    format: str = "text"
    num_chunks: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A chunk with everything a search needs."""

    chunk: Chunk
    vector: np.ndarray  # [dim] float32
    source: str = ""
    format: str = "text"
    metadata: Metadata | None = None


def chunk_schema(dim: int) -> Any:
    import pyarrow as pa

    texts = ("id", "document", "source", "format", "kind", "passage", "chunk")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("metadata", pa.json_(pa.utf8())),
            ("vector", pa.list_(pa.float32(), dim)),
        ]
    )


def chunk_table(rows: Sequence[Row]) -> Any:
    import pyarrow as pa

    dim = len(rows[0].vector)
    vectors = np.stack([row.vector for row in rows]).astype(np.float32, copy=False)
    metadata = pa.array([json.dumps(dict(row.metadata or {})) for row in rows], pa.utf8())
    columns = {
        "id": [row.chunk.id for row in rows],
        "document": [row.chunk.document for row in rows],
        "source": [row.source for row in rows],
        "format": [row.format for row in rows],
        "kind": [row.chunk.kind for row in rows],
        "passage": [row.chunk.to_embedding_text() for row in rows],
        "chunk": [packed(row.chunk) for row in rows],
        "metadata": pa.ExtensionArray.from_storage(pa.json_(pa.utf8()), metadata),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
    }
    return pa.table(columns, schema=chunk_schema(dim))


def packed(chunk: Chunk) -> str:
    values = asdict(chunk)
    values["text"] = len(chunk.text)
    return json.dumps(values)


def unpacked(packed: str, passage: str) -> Chunk:
    values = json.loads(packed)
    text = passage[len(passage) - values.pop("text") :]
    return Chunk(**{**values, "breadcrumb": tuple(values["breadcrumb"])}, text=text)


def record_schema() -> Any:
    import pyarrow as pa

    texts = ("id", "digest", "source", "title", "format")
    return pa.schema([*((name, pa.string()) for name in texts), ("num_chunks", pa.int64()), ("num_tokens", pa.int64())])


def record_table(records: Sequence[Record]) -> Any:
    import pyarrow as pa

    schema = record_schema()
    return pa.table({name: [getattr(record, name) for record in records] for name in schema.names}, schema=schema)

"""What a knowledge base stores, and in which columns. What is searched or asked for by name has a column of its own;
the rest of a chunk is one JSON text, since each column makes reading a row slower. The text of a chunk is the end of
its passage, which is what was embedded and what BM25 indexes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aurify.files import require
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
    """A chunk with everything that a search needs."""

    chunk: Chunk
    vector: np.ndarray  # [dim] float32
    source: str = ""
    format: str = "text"
    metadata: Metadata | None = None

    def to_columns(self) -> dict[str, Any]:
        return {
            "id": self.chunk.id,
            "document": self.chunk.document,
            "source": self.source,
            "format": self.format,
            "kind": self.chunk.kind,
            "passage": self.chunk.to_embedding_text(),
            "chunk": json.dumps(asdict(self.chunk) | {"text": len(self.chunk.text)}),
            "metadata": json.dumps(dict(self.metadata or {})),
            "vector": self.vector,
        }


def unpack_chunk(packed: str, passage: str) -> Chunk:
    values = json.loads(packed)
    text = passage[len(passage) - values.pop("text") :]
    return Chunk(**{**values, "breadcrumb": tuple(values["breadcrumb"])}, text=text)


def chunk_schema(dim: int) -> Any:
    pa = require("pyarrow", "memory", "to keep a knowledge base")
    texts = ("id", "document", "source", "format", "kind", "passage", "chunk")
    columns = [(name, pa.string()) for name in texts]
    return pa.schema([*columns, ("metadata", pa.json_(pa.utf8())), ("vector", pa.list_(pa.float32(), dim))])


def record_schema() -> Any:
    pa = require("pyarrow", "memory", "to keep a knowledge base")
    texts, numbers = ("id", "digest", "source", "title", "format"), ("num_chunks", "num_tokens")
    return pa.schema([*((name, pa.string()) for name in texts), *((name, pa.int64()) for name in numbers)])

"""Where a knowledge base keeps its chunks: LanceDB, a folder of files that takes one commit at a time and lets readers
go on reading.

A document counts as stored once its record is written, and that happens last. Chunks without a record were left by an
interrupted writer; `sweep` removes them. A reader looks at a snapshot: one search sees one version.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from aurify.files import require
from aurify.knowledge.snapshot import Snapshot
from aurify.knowledge.types import Chunk, Metadata
from aurify.knowledge.where import quote_sql

CHUNKS, DOCUMENTS, TEXT_INDEX = "chunks", "documents", "passage_idx"
LANGUAGES = (
    *("Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian", "Italian"),
    *("Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil", "Turkish"),
)
NO_LANGUAGE = "none"  # words as they are written, all of them
KEEP_VERSIONS = timedelta(hours=1)  # a search that began before a clean-up still finds its files
NAMES_AT_ONCE = 500  # in one condition


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
class ChunkRow:
    """A chunk with everything that a search needs."""

    chunk: Chunk
    vector: np.ndarray  # [dim] float32
    source: str = ""
    format: str = "text"
    metadata: Metadata | None = None

    def to_columns(self) -> dict[str, Any]:
        """What is searched or asked for by name has a column of its own; the rest of a chunk is one JSON text, since
        each column makes reading a row slower."""
        return {
            "id": self.chunk.id,
            "document": self.chunk.document,
            "source": self.source,
            "format": self.format,
            "kind": self.chunk.kind,
            "passage": self.chunk.to_embedding_text(),
            "chunk": self.chunk.pack(),
            "metadata": json.dumps(dict(self.metadata or {})),
            "vector": self.vector,
        }


class LanceStore:
    """BM25 ignores the endings and the most frequent words of `language`."""

    def __init__(self, folder: Path, language: str = "English") -> None:
        self.folder = folder
        self.language = language
        self._db = connect_lancedb(folder)
        self._tables: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def _table(self, name: str) -> Any | None:
        """None until something was stored."""
        if name not in self._tables:
            if name not in self._db.list_tables().tables:
                return None
            try:
                self._tables[name] = self._db.open_table(name)
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
                return None  # a writer was stopped while it made the table: a folder that holds nothing yet
        return self._tables[name]

    # Reading

    def records(self) -> list[Record]:
        table = self._table(DOCUMENTS)
        return [] if table is None else [Record(**row) for row in table.search().to_arrow().to_pylist()]

    def digests(self, source: str | None = None) -> dict[str, str]:
        return {record.id: record.digest for record in self.records() if source in (None, record.source)}

    def num_chunks(self) -> int:
        table = self._table(CHUNKS)
        return 0 if table is None else table.count_rows()

    def dim(self) -> int | None:
        table = self._table(CHUNKS)
        return None if table is None else table.schema.field("vector").type.list_size

    def snapshot(self) -> Snapshot | None:
        """The newest version; None where nothing was stored yet."""
        with self._lock:
            table = self._table(CHUNKS)
            if table is None:
                return None
            version = table.version
            if self._snapshot is None or self._snapshot.version != version:
                self._snapshot = Snapshot(self.folder, CHUNKS, version)
            return self._snapshot

    # Writing: by one process at a time; the caller holds the lock

    def add(self, rows: Sequence[ChunkRow], records: Sequence[Record]) -> None:
        """Documents that are not there yet."""
        if rows:
            self._open_or_create(CHUNKS, chunk_schema(len(rows[0].vector))).add([row.to_columns() for row in rows])
        self._add_records(records)

    def replace(self, rows: Sequence[ChunkRow], records: Sequence[Record]) -> None:
        """Documents that are there, or may be: their chunks change in one commit, so that no reader misses them."""
        ids = [record.id for record in records]
        self._forget(ids)
        chunks = self._table(CHUNKS)
        if rows and chunks is not None:
            change = chunks.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            change = change.when_not_matched_by_source_delete(is_one_of("document", ids))
            change.execute([row.to_columns() for row in rows])
            rows = []
        elif not rows:
            self._delete_chunks(ids)
        self.add(rows, records)

    def remove(self, ids: Sequence[str]) -> None:
        """Records first: if this is interrupted, the chunks left behind are known to belong to nothing."""
        for start in range(0, len(ids), NAMES_AT_ONCE):
            names = ids[start : start + NAMES_AT_ONCE]
            self._forget(names)
            self._delete_chunks(names)

    def sweep(self, known: AbstractSet[str]) -> int:
        """Removes the chunks of documents that are not `known`; returns how many documents these were."""
        table = self._table(CHUNKS)
        if table is None:
            return 0
        self._index_words(table)
        held = set(table.search().select(["document"]).to_arrow()["document"].to_pylist())
        self.remove(strays := sorted(held - known))
        return len(strays)

    def tidy(self) -> None:
        """Merges small files and updates the index of words. After that, BM25 scores are those of a store that was
        written in one go."""
        for name in (CHUNKS, DOCUMENTS):
            if (table := self._table(name)) is not None:
                table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def _open_or_create(self, name: str, schema: Any) -> Any:
        if (table := self._table(name)) is not None:
            return table
        table = self._tables[name] = self._db.create_table(name, schema=schema)
        if name == CHUNKS:
            self._index_words(table)
        return table

    def _index_words(self, table: Any) -> None:
        """Before the first row, or where a writer was stopped before it did."""
        from lancedb.index import FTS

        if any(index.name == TEXT_INDEX for index in table.list_indices()):
            return
        plain = self.language == NO_LANGUAGE
        words = FTS() if plain else FTS(language=self.language)
        words.stem = words.remove_stop_words = not plain
        table.create_index("passage", config=words, name=TEXT_INDEX)

    def _add_records(self, records: Sequence[Record]) -> None:
        table = self._open_or_create(DOCUMENTS, record_schema())
        if records:
            table.add([asdict(record) for record in records])

    def _forget(self, ids: Sequence[str]) -> None:
        if ids and (table := self._table(DOCUMENTS)) is not None:
            table.delete(is_one_of("id", ids))

    def _delete_chunks(self, ids: Sequence[str]) -> None:
        if ids and (table := self._table(CHUNKS)) is not None:
            table.delete(is_one_of("document", ids))


def chunk_schema(dim: int) -> Any:
    import pyarrow as pa

    texts = ("id", "document", "source", "format", "kind", "passage", "chunk")
    columns = [(name, pa.string()) for name in texts]
    return pa.schema([*columns, ("metadata", pa.json_(pa.utf8())), ("vector", pa.list_(pa.float32(), dim))])


def record_schema() -> Any:
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64()}
    return pa.schema([(spec.name, types[str(spec.type)]) for spec in fields(Record)])


def connect_lancedb(folder: Path) -> Any:
    lancedb = require("lancedb", "memory", "to keep a knowledge base")
    return lancedb.connect(folder, read_consistency_interval=timedelta(0))  # what others wrote is seen at once


def is_one_of(column: str, names: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(map(quote_sql, names))})"

"""Where a knowledge base keeps its chunks: LanceDB, which is a folder of files, takes one commit at a time and lets
readers go on reading.

A document counts as stored once its record is written, and that happens last. Chunks without a record are what an
interrupted writer left; `sweep` removes them. A reader looks at a snapshot: one search sees one version.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.snapshot import Snapshot
from aurify.knowledge.tables import Record, Row, chunk_schema, chunk_table, record_schema, record_table
from aurify.knowledge.where import quoted

CHUNKS, DOCUMENTS, TEXT_INDEX = "chunks", "documents", "passage_idx"
LANGUAGES = (
    *("Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian", "Italian"),
    *("Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil", "Turkish"),
)
NO_LANGUAGE = "none"  # words as they are written, all of them
KEEP_VERSIONS = timedelta(hours=1)  # a search that began before a clean-up still finds its files
NAMES_AT_ONCE = 500  # in a condition


class LanceStore:
    """`language` is that of the words: their endings are cut and the most frequent ones left out."""

    def __init__(self, folder: Path, language: str = "English") -> None:
        self.folder = folder
        self.language = language
        self._db = connect(folder)
        self._tables: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def _table(self, name: str) -> Any | None:
        """None until something was stored."""
        if name not in self._tables:
            if name not in self._db.list_tables().tables:
                return None
            self._tables[name] = self._db.open_table(name)
        return self._tables[name]

    # Reading

    def records(self) -> list[Record]:
        table = self._table(DOCUMENTS)
        return [] if table is None else [Record(**row) for row in table.search().to_arrow().to_pylist()]

    def digests(self, source: str | None = None) -> dict[str, str]:
        table = self._table(DOCUMENTS)
        if table is None:
            return {}
        query = table.search().select(["id", "digest"])
        if source is not None:
            query = query.where(f"source = {quoted(source)}")
        found = query.to_arrow()
        return dict(zip(found["id"].to_pylist(), found["digest"].to_pylist(), strict=True))

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

    # Writing: by one process at a time; whoever calls holds the lock

    def add(self, rows: Sequence[Row], records: Sequence[Record]) -> None:
        """Documents that are not there."""
        if rows:
            self._made(CHUNKS, chunk_schema(len(rows[0].vector))).add(chunk_table(rows))
        self._made(DOCUMENTS, record_schema()).add(record_table(records))

    def replace(self, rows: Sequence[Row], records: Sequence[Record]) -> None:
        """Documents that are there: their chunks change in one commit, so that no reader misses them."""
        ids = [record.id for record in records]
        self._forget(ids)
        chunks = self._table(CHUNKS)
        if not rows:
            self._delete_chunks(ids)
        elif chunks is not None:
            change = chunks.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            change.when_not_matched_by_source_delete(is_one_of("document", ids)).execute(chunk_table(rows))
        self.add([] if chunks is not None else rows, records)

    def remove(self, ids: Sequence[str]) -> None:
        """Records first: when this is interrupted, the chunks left behind are known to belong to nothing."""
        for names in slices(ids, NAMES_AT_ONCE):
            self._forget(names)
            self._delete_chunks(names)

    def sweep(self, known: AbstractSet[str]) -> int:
        """Removes chunks of documents without a record, which `known` have; the number of these documents."""
        table = self._table(CHUNKS)
        if table is None:
            return 0
        self._index_words(table)
        held = set(table.search().select(["document"]).to_arrow()["document"].to_pylist())
        strays = sorted(held - known)
        for names in slices(strays, NAMES_AT_ONCE):
            self._delete_chunks(names)
        return len(strays)

    def tidy(self) -> None:
        """Merges small files and brings the index of words up to date, after which BM25 scores are those of a store
        written in one go."""
        for name in (CHUNKS, DOCUMENTS):
            if (table := self._table(name)) is not None:
                table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def _made(self, name: str, schema: Any) -> Any:
        if (table := self._table(name)) is not None:
            return table
        table = self._tables[name] = self._db.create_table(name, schema=schema)
        if name == CHUNKS:
            self._index_words(table)
        return table

    def _index_words(self, table: Any) -> None:
        """Before the first row, and where a writer was stopped in between."""
        from lancedb.index import FTS

        if any(index.name == TEXT_INDEX for index in table.list_indices()):
            return
        plain = self.language == NO_LANGUAGE
        words = FTS() if plain else FTS(language=self.language)
        words.stem = words.remove_stop_words = not plain
        table.create_index("passage", config=words, name=TEXT_INDEX)

    def _forget(self, ids: Sequence[str]) -> None:
        if ids and (table := self._table(DOCUMENTS)) is not None:
            table.delete(is_one_of("id", ids))

    def _delete_chunks(self, ids: Sequence[str]) -> None:
        if ids and (table := self._table(CHUNKS)) is not None:
            table.delete(is_one_of("document", ids))


def connect(folder: Path) -> Any:
    try:
        import lancedb
    except ImportError:
        raise UserError("a knowledge base is kept in LanceDB; install it with: pip install 'aurify[memory]'") from None
    return lancedb.connect(folder, read_consistency_interval=timedelta(0))  # what others wrote is seen at once


def slices(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def is_one_of(column: str, names: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(quoted(name) for name in names)})"

"""Where a knowledge base keeps its chunks: LanceDB, which is a folder of files, takes one commit at a time and lets
readers go on reading.

A document counts as stored once its record is written, and that happens last. Chunks without a record are what an
interrupted writer left; `sweep` removes them. A reader looks at a snapshot: one search sees one version.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from aurify.errors import UserError
from aurify.memory.types import Chunk, Metadata
from aurify.memory.where import Where, quoted, to_sql

CHUNKS, DOCUMENTS, TEXT_INDEX = "chunks", "documents", "passage_idx"
LANGUAGES = (
    *("Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian", "Italian"),
    *("Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil", "Turkish"),
)
NO_LANGUAGE = "none"  # words as they are written, all of them
KEEP_VERSIONS = timedelta(hours=1)  # a search that began before a clean-up still finds its files
IN_MEMORY = 1 << 30  # bytes of vectors up to which dense search is a product of matrices: exact, and ten times faster;
# the texts, which take less, are then in memory too: looking up ten rows of a table costs more than searching it
SHOWN = ("chunk", "passage", "metadata")  # columns of what a search returns
NAMES_AT_ONCE = 500  # in a condition
ROWS_AT_ONCE = 32  # queries in one product: a gigabyte of vectors gives them 90 MB of scores
CONDITIONS = 32  # whose matches a snapshot remembers


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
                pinned = self._db.open_table(CHUNKS)
                pinned.checkout(version)
                self._snapshot = Snapshot(pinned, version)
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


class Snapshot:
    """One version of the chunks, in the order of their ids: a chunk is named by its place in that order, so that equal
    scores are ordered by id."""

    def __init__(self, table: Any, version: int) -> None:
        import pyarrow.compute as pc

        self.table = table
        self.version = version
        self._matching: dict[str, np.ndarray] = {}
        held = table.search().select(["id"]).with_row_id(True).to_arrow()
        order = pc.sort_indices(held["id"])
        self.ids = held["id"].take(order).combine_chunks()
        self.row_ids = held["_rowid"].take(order).to_numpy()
        self._by_row_id = np.argsort(self.row_ids)
        self._sorted_row_ids = self.row_ids[self._by_row_id]
        dim = table.schema.field("vector").type.list_size
        self.vectors: np.ndarray | None = None  # [chunks, dim]
        self.shown: Any | None = None  # their columns, as a table of Arrow
        if len(self.ids) * dim * 4 <= IN_MEMORY:
            loaded = table.search().select(["vector", *SHOWN]).with_row_id(True).to_arrow().combine_chunks()
            order = np.argsort(self.places(loaded["_rowid"].to_numpy()))
            vectors = loaded["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            self.vectors = vectors[order]
            self.shown = loaded.select(list(SHOWN)).take(order).combine_chunks()

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, place: int) -> str:
        return self.ids[place].as_py()

    def places(self, row_ids: np.ndarray) -> np.ndarray:
        return self._by_row_id[np.searchsorted(self._sorted_row_ids, row_ids)]

    def matching(self, where: Where | None) -> np.ndarray | None:
        """The places that a search may find, in order; None for all of them. The last conditions are remembered: a
        version does not change, and people ask several questions under one condition."""
        condition = to_sql(where)
        if condition is None:
            return None
        if condition not in self._matching:
            found = self.table.search().where(condition).select(["_rowid"]).with_row_id(True).to_arrow()
            if len(self._matching) >= CONDITIONS:
                self._matching.clear()
            self._matching[condition] = np.sort(self.places(found["_rowid"].to_numpy()))
        return self._matching[condition]

    def dense(self, vector: np.ndarray, limit: int, among: np.ndarray | None = None) -> list[tuple[int, float]]:
        """(place, cosine), exact, best first."""
        return next(self.dense_many(vector[None], limit, among))

    def dense_many(
        self, vectors: np.ndarray, limit: int, among: np.ndarray | None = None
    ) -> Iterator[list[tuple[int, float]]]:
        """For each row. The vectors held are read once for many rows, and that is most of the time."""
        if self.vectors is None:
            yield from (self._dense_on_disk(vector, limit, among) for vector in vectors)
            return
        held = self.vectors if among is None else self.vectors[among]
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            for scores in vectors[start : start + ROWS_AT_ONCE] @ held.T:
                found = best(scores, limit)
                yield found if among is None else [(int(among[place]), score) for place, score in found]

    def _dense_on_disk(self, vector: np.ndarray, limit: int, among: np.ndarray | None) -> list[tuple[int, float]]:
        def ask(num: int) -> tuple[np.ndarray, np.ndarray]:
            search = self.table.search(vector).distance_type("dot").select(["_distance"])
            found = search.with_row_id(True).limit(num).to_arrow()
            return found["_rowid"].to_numpy(), 1 - found["_distance"].to_numpy()

        return self._best(ask, limit, among)

    def bm25(self, query: str, limit: int, among: np.ndarray | None = None) -> list[tuple[int, float]]:
        """(place, score), best first."""
        from lancedb.query import MatchQuery

        def ask(num: int) -> tuple[np.ndarray, np.ndarray]:
            search = self.table.search(MatchQuery(query, "passage"), query_type="fts").select(["_score"])
            found = search.with_row_id(True).limit(num).to_arrow()
            return found["_rowid"].to_numpy(), found["_score"].to_numpy()

        return self._best(ask, limit, among)

    def _best(
        self, ask: Callable[[int], tuple[np.ndarray, np.ndarray]], limit: int, among: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """Asks for more while too few of the answers are allowed, or the last one ties with what may follow."""
        allowed = np.ones(len(self), bool)
        num = limit + 1
        if among is not None:
            allowed[:] = False
            allowed[among] = True
            num += limit * len(self) // max(len(among), 1)
        while True:
            row_ids, scores = ask(num)
            complete, places = len(scores) < num, self.places(row_ids)
            least = scores[-1] if len(scores) else 0.0
            places, scores = places[allowed[places]], scores[allowed[places]]
            if complete or (len(scores) >= limit and scores[limit - 1] > least):
                return ordered(places, scores)[:limit]
            num *= 4

    def cosines(self, vector: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """For chunks that only words have found."""
        if self.vectors is not None:
            return self.vectors[list(places)] @ vector
        found = self._take(places, ["vector"])
        return np.array([row["vector"] for row in found], np.float32).reshape(len(places), -1) @ vector

    def chunks(self, places: Sequence[int]) -> list[tuple[Chunk, dict[str, Any]]]:
        """With the metadata of their documents, in the order asked for."""
        held = self.shown
        rows = self._take(places, SHOWN) if held is None else held.take(np.array(places, np.int64)).to_pylist()
        return [(unpacked(row["chunk"], row["passage"]), json.loads(row["metadata"])) for row in rows]

    def _take(self, places: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        if not len(places):
            return []
        query = self.table.take_row_ids(self.row_ids[list(places)].tolist()).select(list(columns)).with_row_id()
        rows = {row["_rowid"]: row for row in query.to_arrow().to_pylist()}
        return [rows[int(self.row_ids[place])] for place in places]


def connect(folder: Path) -> Any:
    try:
        import lancedb
    except ImportError:
        raise UserError(
            "a knowledge base is kept in LanceDB; install it with: pip install 'aurify[memory]'"
        ) from None
    return lancedb.connect(folder, read_consistency_interval=timedelta(0))  # what others wrote is seen at once


def best(scores: np.ndarray, limit: int) -> list[tuple[int, float]]:
    """The highest, ties by place. Scores count to six decimals: in the seventh, equal texts differ by how they were
    batched."""
    if limit < len(scores):
        least = np.partition(scores, -limit)[-limit]
        places = np.flatnonzero(scores >= least - 1e-6)
    else:
        places = np.arange(len(scores))
    return ordered(places, scores[places])[:limit]


def ordered(places: np.ndarray, scores: np.ndarray) -> list[tuple[int, float]]:
    rounded = np.round(scores.astype(np.float64), 6)
    order = np.lexsort((places, -rounded))
    return list(zip(places[order].tolist(), rounded[order].tolist(), strict=True))


def slices(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def is_one_of(column: str, names: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(quoted(name) for name in names)})"


# Columns: what is searched and asked for by name has its own; the rest of a chunk is one JSON text, since reading a row
# costs by its columns. The text of a chunk is the end of its passage, which is what was embedded and what BM25 indexes.


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

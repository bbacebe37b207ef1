"""What one search sees: one version of the chunks, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aurify.knowledge.types import Chunk, Value, Where
from aurify.knowledge.where import COLUMNS, where_to_sql

# Up to so many bytes of vectors, dense search is a matrix product: exact, and ten times faster than on disk. The texts,
# which take less, are then in memory too, since looking up ten rows of a table costs more than searching it.
IN_MEMORY = 1 << 30
SHOWN = ("chunk", "passage", "metadata")  # columns of what a search returns
QUERIES_AT_ONCE = 32  # in one product: a gigabyte of vectors gives them 90 MB of scores
MAX_CONDITIONS = 32  # whose matches a snapshot remembers
T = TypeVar("T")
Ranking = list[tuple[int, float]]  # (index of a chunk, score), best first
Ask = Callable[[int], Awaitable[tuple[np.ndarray, np.ndarray]]]  # how many -> row ids and scores


class Snapshot:
    """One version of the chunks in the order of their ids. A chunk is named by its index in that order, so that equal
    scores are ordered by id."""

    def __init__(self, folder: Path, name: str, version: int) -> None:
        import pyarrow.compute as pc

        self.version = version
        self.table = run_in_lancedb_loop(open_table_version(folder, name, version)).result()
        self._matching: dict[str, np.ndarray] = {}
        held = self._read(self.table.query().select(["id"]))
        order = pc.sort_indices(held["id"])
        self.ids = held["id"].take(order).combine_chunks()
        self.row_ids = held["_rowid"].take(order).to_numpy()
        self._by_row_id = np.argsort(self.row_ids)
        self._sorted_row_ids = self.row_ids[self._by_row_id]
        dim = run_in_lancedb_loop(self.table.schema()).result().field("vector").type.list_size
        self.vectors: np.ndarray | None = None  # [chunks, dim]
        self.shown: Any | None = None  # the columns SHOWN as an Arrow table
        if len(self.ids) * dim * 4 <= IN_MEMORY:
            loaded = self._read(self.table.query().select(["vector", *SHOWN])).combine_chunks()
            order = np.argsort(self.to_indices(loaded["_rowid"].to_numpy()))
            vectors = loaded["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            self.vectors = vectors[order]
            self.shown = loaded.select(list(SHOWN)).take(order).combine_chunks()

    def _read(self, query: Any) -> Any:
        """An Arrow table with row ids."""
        return run_in_lancedb_loop(query.with_row_id().to_arrow()).result()

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, index: int) -> str:
        return self.ids[index].as_py()

    def to_indices(self, row_ids: np.ndarray) -> np.ndarray:
        return self._by_row_id[np.searchsorted(self._sorted_row_ids, row_ids)]

    def find_matching(self, where: Where | None) -> np.ndarray | None:
        """The indices of the chunks that a search may find, in order; None for all. The last conditions are remembered,
        since people ask several questions under one condition."""
        condition = where_to_sql(where)
        if condition is None:
            return None
        if condition not in self._matching:
            found = self._read(self.table.query().where(condition).select(["_rowid"]))
            if len(self._matching) >= MAX_CONDITIONS:
                self._matching.clear()
            self._matching[condition] = np.sort(self.to_indices(found["_rowid"].to_numpy()))
        return self._matching[condition]

    def count_values(self) -> dict[str, Counter[Value]]:
        """Everything that conditions can ask for: each key, and how many chunks have each of its values."""
        counts: dict[str, Counter[Value]] = {}
        held = self._read(self.table.query().select(["metadata", *COLUMNS.values()]))
        for key, column in COLUMNS.items():
            counts[key] = Counter(held[column].to_pylist())
        for metadata in held["metadata"].to_pylist():
            for key, value in json.loads(metadata).items():
                counts.setdefault(key, Counter())[value] += 1
        return counts

    def dense_many(self, vectors: np.ndarray, limit: int, among: np.ndarray | None = None) -> Iterator[Ranking]:
        """By cosine, exact; for each query. Most of the time goes into reading the vectors: once for many queries."""
        if self.vectors is None:
            yield from (self._dense_on_disk(vector, limit, among) for vector in vectors)
            return
        held = self.vectors if among is None else self.vectors[among]
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            for scores in vectors[start : start + QUERIES_AT_ONCE] @ held.T:
                best = pick_nearest_chunks(scores, limit)
                yield best if among is None else [(int(among[index]), score) for index, score in best]

    def _dense_on_disk(self, vector: np.ndarray, limit: int, among: np.ndarray | None) -> Ranking:
        async def ask(num: int) -> tuple[np.ndarray, np.ndarray]:
            query = self.table.query().nearest_to(vector).distance_type("dot").select(["_distance"])
            found = await query.with_row_id().limit(num).to_arrow()
            return found["_rowid"].to_numpy(), 1 - found["_distance"].to_numpy()

        return run_in_lancedb_loop(self._rank(ask, limit, among)).result()

    def bm25(self, query: str, limit: int, among: np.ndarray | None = None) -> Ranking:
        return run_in_lancedb_loop(self.search_words(query, limit, among)).result()

    async def search_words(self, query: str, limit: int, among: np.ndarray | None = None) -> Ranking:
        """`bm25` for `run_in_lancedb_loop`: the caller does other things meanwhile."""
        from lancedb.query import MatchQuery

        async def ask(num: int) -> tuple[np.ndarray, np.ndarray]:
            words = self.table.query().nearest_to_text(MatchQuery(query, "passage")).select(["_score"])
            found = await words.with_row_id().limit(num).to_arrow()
            return found["_rowid"].to_numpy(), found["_score"].to_numpy()

        return await self._rank(ask, limit, among)

    async def _rank(self, ask: Ask, limit: int, among: np.ndarray | None) -> Ranking:
        """Asks for more while too few of the answers are allowed, or the last one ties with what may follow."""
        num = limit + 1
        if among is not None:
            num += limit * len(self) // max(len(among), 1)
        while True:
            row_ids, scores = await ask(num)
            complete, indices = len(scores) < num, self.to_indices(row_ids)
            least = scores[-1] if len(scores) else 0.0
            if among is not None:
                allowed = np.isin(indices, among)
                indices, scores = indices[allowed], scores[allowed]
            if complete or (len(scores) >= limit and scores[limit - 1] > least):
                return sort_chunks_by_score(indices, scores)[:limit]
            num *= 4

    def cosines(self, vector: np.ndarray, indices: Sequence[int]) -> np.ndarray:
        """For chunks that only words have found."""
        if self.vectors is not None:
            return self.vectors[list(indices)] @ vector
        found = self._take(indices, ["vector"])
        return np.array([row["vector"] for row in found], np.float32).reshape(len(indices), -1) @ vector

    def chunks(self, indices: Sequence[int]) -> list[tuple[Chunk, dict[str, Any]]]:
        """With the metadata of their documents, in the order asked for."""
        held = self.shown
        rows = self._take(indices, SHOWN) if held is None else held.take(np.array(indices, np.int64)).to_pylist()
        return [(Chunk.unpack(row["chunk"], row["passage"]), json.loads(row["metadata"])) for row in rows]

    def _take(self, indices: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        if not len(indices):
            return []
        row_ids = self.row_ids[list(indices)].tolist()
        found = self._read(self.table.take_row_ids(row_ids).select(list(columns)))
        rows = {row["_rowid"]: row for row in found.to_pylist()}
        return [rows[row_id] for row_id in row_ids]


def pick_nearest_chunks(scores: np.ndarray, limit: int) -> Ranking:
    """The highest scores, ties by index. In the seventh decimal, equal texts differ by how they were batched."""
    if limit >= len(scores):
        return sort_chunks_by_score(np.arange(len(scores)), scores)
    least = np.partition(scores, -limit)[-limit]
    indices = np.flatnonzero(scores >= least - 1e-6)
    return sort_chunks_by_score(indices, scores[indices])[:limit]


def sort_chunks_by_score(indices: np.ndarray, scores: np.ndarray) -> Ranking:
    """Scores are rounded to six decimals."""
    rounded = np.round(scores.astype(np.float64), 6)
    order = np.lexsort((indices, -rounded))
    return list(zip(indices[order].tolist(), rounded[order].tolist(), strict=True))


async def open_table_version(folder: Path, name: str, version: int) -> Any:
    import lancedb

    table = await (await lancedb.connect_async(folder)).open_table(name)
    await table.checkout(version)
    return table


def run_in_lancedb_loop(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Runs beside the caller. Of LanceDB's two interfaces the asynchronous one answers a question in half the time: the
    other takes five steps for it, each through a thread of its own."""
    return asyncio.run_coroutine_threadsafe(work, open_lancedb_loop())


@cache
def open_lancedb_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="aurify-search", daemon=True).start()
    return loop

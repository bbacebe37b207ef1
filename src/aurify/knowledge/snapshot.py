"""What one search sees: one version of the chunks, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aurify.knowledge.tables import unpacked
from aurify.knowledge.types import Chunk
from aurify.knowledge.where import Where, to_sql

IN_MEMORY = 1 << 30  # bytes of vectors up to which dense search is a product of matrices: exact, and ten times faster;
# the texts, which take less, are then in memory too: looking up ten rows of a table costs more than searching it
SHOWN = ("chunk", "passage", "metadata")  # columns of what a search returns
ROWS_AT_ONCE = 32  # queries in one product: a gigabyte of vectors gives them 90 MB of scores
CONDITIONS = 32  # whose matches a snapshot remembers
T = TypeVar("T")
Asked = tuple[np.ndarray, np.ndarray]  # row ids and scores


class Snapshot:
    """One version of the chunks, in the order of their ids: a chunk is named by its place in that order, so that equal
    scores are ordered by id."""

    def __init__(self, folder: Path, name: str, version: int) -> None:
        import pyarrow.compute as pc

        self.version = version
        self.table = in_background(opened(folder, name, version)).result()
        self._matching: dict[str, np.ndarray] = {}
        held = self._read(self.table.query().select(["id"]))
        order = pc.sort_indices(held["id"])
        self.ids = held["id"].take(order).combine_chunks()
        self.row_ids = held["_rowid"].take(order).to_numpy()
        self._by_row_id = np.argsort(self.row_ids)
        self._sorted_row_ids = self.row_ids[self._by_row_id]
        dim = in_background(self.table.schema()).result().field("vector").type.list_size
        self.vectors: np.ndarray | None = None  # [chunks, dim]
        self.shown: Any | None = None  # their columns, as a table of Arrow
        if len(self.ids) * dim * 4 <= IN_MEMORY:
            loaded = self._read(self.table.query().select(["vector", *SHOWN])).combine_chunks()
            order = np.argsort(self.places(loaded["_rowid"].to_numpy()))
            vectors = loaded["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            self.vectors = vectors[order]
            self.shown = loaded.select(list(SHOWN)).take(order).combine_chunks()

    def _read(self, query: Any) -> Any:
        """A table of Arrow, with row ids."""
        return in_background(query.with_row_id().to_arrow()).result()

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
            found = self._read(self.table.query().where(condition).select(["_rowid"]))
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
        async def ask(num: int) -> Asked:
            search = self.table.query().nearest_to(vector).distance_type("dot").select(["_distance"])
            found = await search.with_row_id().limit(num).to_arrow()
            return found["_rowid"].to_numpy(), 1 - found["_distance"].to_numpy()

        return in_background(self._best(ask, limit, among)).result()

    def bm25(self, query: str, limit: int, among: np.ndarray | None = None) -> list[tuple[int, float]]:
        """(place, score), best first."""
        return in_background(self.words(query, limit, among)).result()

    async def words(self, query: str, limit: int, among: np.ndarray | None = None) -> list[tuple[int, float]]:
        """`bm25`, for `in_background`: the caller does other things meanwhile."""
        from lancedb.query import MatchQuery

        async def ask(num: int) -> Asked:
            search = self.table.query().nearest_to_text(MatchQuery(query, "passage")).select(["_score"])
            found = await search.with_row_id().limit(num).to_arrow()
            return found["_rowid"].to_numpy(), found["_score"].to_numpy()

        return await self._best(ask, limit, among)

    async def _best(
        self, ask: Callable[[int], Awaitable[Asked]], limit: int, among: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """Asks for more while too few of the answers are allowed, or the last one ties with what may follow."""
        allowed = np.ones(len(self), bool)
        num = limit + 1
        if among is not None:
            allowed[:] = False
            allowed[among] = True
            num += limit * len(self) // max(len(among), 1)
        while True:
            row_ids, scores = await ask(num)
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
        query = self.table.take_row_ids(self.row_ids[list(places)].tolist()).select(list(columns))
        rows = {row["_rowid"]: row for row in self._read(query).to_pylist()}
        return [rows[int(self.row_ids[place])] for place in places]


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


async def opened(folder: Path, name: str, version: int) -> Any:
    import lancedb

    table = await (await lancedb.connect_async(folder)).open_table(name)
    await table.checkout(version)
    return table


def in_background(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Runs beside the caller. Of LanceDB's two interfaces the asynchronous one answers a question in half the time: the
    other takes five steps for it, each through a thread of its own."""
    return asyncio.run_coroutine_threadsafe(work, background_loop())


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="aurify-search", daemon=True).start()
    return loop

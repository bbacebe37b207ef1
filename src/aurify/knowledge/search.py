"""The stages of a search: words and meaning find candidates, their lists are fused, the best of each document is kept,
and a second stage may look at the rest more closely."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from aurify.bounds import Checked, NonNegativeFloat, PositiveInt, Share
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.knowledge.fusion import rrf, weighted
from aurify.knowledge.snapshot import Snapshot, in_background
from aurify.knowledge.types import Chunk, Embedder, Hit, Mode, Reranker
from aurify.knowledge.where import Where

Times = MutableMapping[str, float]  # stage -> seconds, added up
Places = list[tuple[int, float]]
Fusion = Literal["weighted", "rrf"]
LOOKED_UP_TOGETHER = 2  # questions
PER_LIMIT = 5  # candidates for each hit asked for: several may be of one document


@dataclass(frozen=True)
class SearchOptions(Checked):
    """How a knowledge base searches unless told otherwise; its settings.json keeps them. On half of MedQuAD's questions
    a dense weight of 0.9 was best and 0.85 close to it; on our own code 0.85 was better (docs/memory.md)."""

    mode: Mode = "hybrid"
    fusion: Fusion = "weighted"
    dense_weight: Share = 0.85  # the rest is that of the words
    k: NonNegativeFloat = 60  # of reciprocal rank fusion
    candidates: PositiveInt = 100  # of each first stage
    reranked: PositiveInt = 50  # that a second stage looks at

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, choices in (
            ("mode", self.mode, get_args(Mode)),
            ("fusion", self.fusion, get_args(Fusion)),
        ):
            if value not in choices:
                raise UserError(
                    f"search: {name} is {value!r}; expected one of {', '.join(choices)}{did_you_mean(value, choices)}"
                )

    @property
    def weights(self) -> dict[str, float]:
        return {"dense": self.dense_weight, "bm25": 1 - self.dense_weight}


@dataclass(frozen=True, slots=True)
class Found:
    """What the first stages found for one query: their lists by name, and how these became one."""

    lists: Mapping[str, Places]
    order: Places


def search(
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    queries: Sequence[str],
    options: SearchOptions,
    *,
    limit: int = 10,
    where: Where | None = None,
    rerank: Reranker | None = None,
    per_document: bool = True,
    times: Times | None = None,
) -> list[list[Hit]]:
    """The hits of each query. Queries are embedded in one batch, while their words are looked up."""
    times = {} if times is None else times
    options = replace(options, candidates=max(options.candidates, PER_LIMIT * limit))
    hits = []
    for query, found in zip(queries, first_stages(snapshot, embedder, queries, options, where, times), strict=True):
        with timed(times, "fetch"):
            num = limit if rerank is None else max(limit, options.reranked)
            chosen = fetched(snapshot, found, best_of_each(snapshot, found.order, per_document, num))
        if rerank is not None:
            with timed(times, "rerank"):
                chosen = reranked(rerank, query, chosen)
        hits.append((chosen if per_document else without_overlaps(chosen))[:limit])
    return hits


def first_stages(
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    queries: Sequence[str],
    options: SearchOptions,
    where: Where | None,
    times: Times,
) -> Iterator[Found]:
    together = asyncio.Semaphore(LOOKED_UP_TOGETHER)

    async def by_words(query: str) -> tuple[Places, float]:
        async with together:
            start = time.perf_counter()
            return await snapshot.words(query, options.candidates, among), time.perf_counter() - start

    with timed(times, "filter"):
        among = snapshot.matching(where)
    words = [in_background(by_words(query)) for query in queries if options.mode != "dense"]
    vectors = None
    if options.mode != "bm25":
        with timed(times, "load"):
            model = embedder()
        with timed(times, "embed"):
            vectors = model.embed_queries(queries)
        meant = snapshot.dense_many(vectors, options.candidates, among)
    for number in range(len(queries)):
        lists: dict[str, Places] = {}
        if vectors is not None:
            with timed(times, "dense"):
                lists["dense"] = next(meant)
        if words:
            lists["bm25"], seconds = words[number].result()
            times["bm25"] = times.get("bm25", 0.0) + seconds
        if vectors is None or not words:
            yield Found(lists, *lists.values())
            continue
        with timed(times, "fuse"):
            found = fused(snapshot, lists, vectors[number], options)
        yield found


def fused(snapshot: Snapshot, lists: dict[str, Places], vector: np.ndarray, options: SearchOptions) -> Found:
    """A weighted sum needs the cosine of what only words have found, too; ranks are those of the lists."""
    if options.fusion == "rrf":
        return Found(lists, rrf(lists, options.weights, options.k))
    seen = {place for place, _ in lists["dense"]}
    unseen = [place for place, _ in lists["bm25"] if place not in seen]
    cosines = [round(float(cosine), 6) for cosine in snapshot.cosines(vector, unseen)] if unseen else []
    complete = {**lists, "dense": [*lists["dense"], *zip(unseen, cosines, strict=True)]}
    return Found(lists, weighted(complete, options.weights))


def best_of_each(snapshot: Snapshot, order: Places, per_document: bool, num: int) -> Places:
    """The first `num` of the order, of each document the best alone if so told."""
    if not per_document:
        return order[:num]
    best: dict[str, tuple[int, float]] = {}
    for place, score in order:
        best.setdefault(snapshot.id(place).rpartition("#")[0], (place, score))
        if len(best) == num:
            break
    return list(best.values())


def fetched(snapshot: Snapshot, found: Found, pool: Places) -> list[Hit]:
    scores: dict[int, dict[str, float]] = {place: {} for place, _ in pool}
    ranks: dict[int, dict[str, int]] = {place: {} for place, _ in pool}
    stages = {**found.lists, "fused": found.order} if len(found.lists) > 1 else found.lists
    for name, ranked in stages.items():
        for rank, (place, score) in enumerate(ranked, 1):
            if place in scores:
                scores[place][name], ranks[place][name] = score, rank
    chunks = snapshot.chunks([place for place, _ in pool])
    return [
        Hit(chunk, score, metadata, scores[place], ranks[place])
        for (place, score), (chunk, metadata) in zip(pool, chunks, strict=True)
    ]


def reranked(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    if not hits:
        return []
    scores = reranker.scores(query, [hit.chunk.to_embedding_text() for hit in hits])
    order = sorted(range(len(hits)), key=lambda number: (-scores[number], number))
    return [
        replace(
            hits[number],
            score=scores[number],
            scores={**hits[number].scores, "reranked": scores[number]},
            ranks={**hits[number].ranks, "reranked": rank},
        )
        for rank, number in enumerate(order, 1)
    ]


def without_overlaps(hits: Sequence[Hit]) -> list[Hit]:
    """A class and its methods are chunks of their own: of two that mostly share their lines, the better one stays."""
    kept: list[Hit] = []
    for hit in hits:
        if not any(mostly_the_same(hit.chunk, other.chunk) for other in kept):
            kept.append(hit)
    return kept


def mostly_the_same(one: Chunk, other: Chunk) -> bool:
    if one.document != other.document or "anchor" in (one.kind, other.kind):
        return False
    shared = min(one.end, other.end) - max(one.start, other.start)
    return shared > 0.5 * min(one.end - one.start, other.end - other.start)


@contextmanager
def timed(times: Times, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        times[stage] = times.get(stage, 0.0) + time.perf_counter() - start

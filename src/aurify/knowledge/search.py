"""The stages of a search: words and meaning find candidates, their lists are fused, the best passage of each document
is kept, and a second stage may look at the rest more closely."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from aurify.bounds import Checked, NonNegativeFloat, PositiveInt, Share
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.knowledge.fusion import fuse_ranks, fuse_scores
from aurify.knowledge.snapshot import Ranking, Snapshot, run_in_lancedb_loop
from aurify.knowledge.types import Chunk, Embedder, Hit, Mode, Reranker, Where

Times = MutableMapping[str, float]  # stage -> seconds, added up
Fusion = Literal["weighted", "rrf"]
QUERIES_AT_ONCE = 2  # whose words are looked up together
PER_LIMIT = 5  # candidates for each hit asked for: several may be of one document


@dataclass(frozen=True)
class SearchOptions(Checked):
    """How a knowledge base searches unless told otherwise; its settings.json keeps them. On half of MedQuAD's questions
    a dense weight of 0.9 was best and 0.85 close to it; on our own code 0.85 was better (docs/memory.md)."""

    mode: Mode = "hybrid"
    fusion: Fusion = "weighted"
    dense_weight: Share = 0.85  # words have the rest
    k: NonNegativeFloat = 60  # of reciprocal rank fusion
    candidates: PositiveInt = 100  # of each first stage
    reranked: PositiveInt = 50  # that a second stage looks at

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("mode", get_args(Mode)), ("fusion", get_args(Fusion))):
            if (value := getattr(self, name)) not in choices:
                raise UserError(
                    f"search: {name} is {value!r}; expected one of {', '.join(choices)}{did_you_mean(value, choices)}"
                )

    def describe(self) -> str:
        if self.mode != "hybrid":
            return self.mode
        fusion = "weighted" if self.fusion == "weighted" else f"RRF, k {self.k:g}"
        return f"{fusion}, dense {self.dense_weight:g}"

    @property
    def weights(self) -> dict[str, float]:
        return {"dense": self.dense_weight, "bm25": 1 - self.dense_weight}


def search(
    snapshot: Snapshot,
    open_embedder: Callable[[], Embedder],
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
    num = limit if rerank is None else max(limit, options.reranked)
    results = []
    found = find_search_candidates(snapshot, open_embedder, queries, options, where, times)
    for query, lists in zip(queries, found, strict=True):
        with time_search_stage(times, "fetch"):
            hits = fetch_hits(snapshot, lists, num, per_document)
        if rerank is not None:
            with time_search_stage(times, "rerank"):
                hits = apply_reranker(rerank, query, hits)
        results.append((hits if per_document else drop_overlapping_hits(hits))[:limit])
    return results


def find_search_candidates(
    snapshot: Snapshot,
    open_embedder: Callable[[], Embedder],
    queries: Sequence[str],
    options: SearchOptions,
    where: Where | None,
    times: Times,
) -> Iterator[dict[str, Ranking]]:
    """For each query the list of each stage by name. The last one is the order of the hits."""
    gate = asyncio.Semaphore(QUERIES_AT_ONCE)

    async def look_up(query: str) -> tuple[Ranking, float]:
        async with gate:
            start = time.perf_counter()
            return await snapshot.search_words(query, options.candidates, among), time.perf_counter() - start

    with time_search_stage(times, "filter"):
        among = snapshot.find_matching(where)
    words = [run_in_lancedb_loop(look_up(query)) for query in queries if options.mode != "dense"]
    if options.mode != "bm25":
        with time_search_stage(times, "load"):
            embedder = open_embedder()
        with time_search_stage(times, "embed"):
            vectors = embedder.embed_queries(queries)
        by_meaning = snapshot.dense_many(vectors, options.candidates, among)
    for number in range(len(queries)):
        lists: dict[str, Ranking] = {}
        if options.mode != "bm25":
            with time_search_stage(times, "dense"):
                lists["dense"] = next(by_meaning)
        if options.mode != "dense":
            lists["bm25"], seconds = words[number].result()
            times["bm25"] = times.get("bm25", 0.0) + seconds
        if options.mode == "hybrid":
            with time_search_stage(times, "fuse"):
                lists["fused"] = fuse_hits(snapshot, lists, vectors[number], options)
        yield lists


def fuse_hits(snapshot: Snapshot, lists: dict[str, Ranking], vector: np.ndarray, options: SearchOptions) -> Ranking:
    """A weighted sum also needs the cosines of what only words have found; ranks are those of the lists."""
    if options.fusion == "rrf":
        return fuse_ranks(lists, options.weights, options.k)
    seen = {index for index, _ in lists["dense"]}
    unseen = [index for index, _ in lists["bm25"] if index not in seen]
    cosines = [round(float(cosine), 6) for cosine in snapshot.cosines(vector, unseen)] if unseen else []
    return fuse_scores({**lists, "dense": [*lists["dense"], *zip(unseen, cosines, strict=True)]}, options.weights)


def pick_hits(snapshot: Snapshot, order: Ranking, per_document: bool, num: int) -> Ranking:
    """The first `num` of an order; with `per_document`, only the best of each document."""
    if not per_document:
        return order[:num]
    best: dict[str, tuple[int, float]] = {}
    for index, score in order:
        best.setdefault(snapshot.id(index).rpartition("#")[0], (index, score))
        if len(best) == num:
            break
    return list(best.values())


def fetch_hits(snapshot: Snapshot, lists: dict[str, Ranking], num: int, per_document: bool) -> list[Hit]:
    *_, order = lists.values()
    chosen = pick_hits(snapshot, order, per_document, num)
    scores: dict[int, dict[str, float]] = {index: {} for index, _ in chosen}
    ranks: dict[int, dict[str, int]] = {index: {} for index, _ in chosen}
    for name, ranking in lists.items():
        for rank, (index, score) in enumerate(ranking, 1):
            if index in scores:
                scores[index][name], ranks[index][name] = score, rank
    chunks = snapshot.chunks([index for index, _ in chosen])
    return [
        Hit(chunk, score, metadata, scores[index], ranks[index])
        for (index, score), (chunk, metadata) in zip(chosen, chunks, strict=True)
    ]


def apply_reranker(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    scores = reranker.scores(query, [hit.chunk.to_embedding_text() for hit in hits])
    scored = [
        replace(hit, score=score, scores={**hit.scores, "reranked": score})
        for hit, score in zip(hits, scores, strict=True)
    ]
    scored.sort(key=lambda hit: -hit.score)
    return [replace(hit, ranks={**hit.ranks, "reranked": rank}) for rank, hit in enumerate(scored, 1)]


def drop_overlapping_hits(hits: Sequence[Hit]) -> list[Hit]:
    """Of two passages that share most of their text, the better one stays."""
    kept: list[Hit] = []
    for hit in hits:
        if not any(share_passage_text(hit.chunk, other.chunk) for other in kept):
            kept.append(hit)
    return kept


def share_passage_text(one: Chunk, other: Chunk) -> bool:
    if one.document != other.document or "anchor" in (one.kind, other.kind):
        return False
    shared = min(one.end, other.end) - max(one.start, other.start)
    return shared > 0.5 * min(one.end - one.start, other.end - other.start)


@contextmanager
def time_search_stage(times: Times, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        times[stage] = times.get(stage, 0.0) + time.perf_counter() - start

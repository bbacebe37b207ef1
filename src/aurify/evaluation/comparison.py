"""The modes of a knowledge base side by side on the same questions, and the fusion that suits them best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aurify.errors import UserError
from aurify.evaluation.retrieval import CUTOFFS, DEPTH, Latency, Quality, Question, latency, quality
from aurify.knowledge import search as searching
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.search import SearchOptions
from aurify.knowledge.types import Hit, Reranker

AT_ONCE = 32  # questions in one batch
WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # of dense search, tried for both kinds of fusion

Progress = Callable[[int], None]  # so many more questions have been asked


@dataclass(frozen=True)
class Measured:
    """One way to search. `stages` are the parts of `total`, except that words are looked up while the query is
    embedded."""

    name: str
    quality: Quality
    total: Latency
    stages: dict[str, Latency]

    def record(self) -> dict[str, Any]:
        stages = {name: one.record() for name, one in self.stages.items()}
        return {"name": self.name, **self.quality.record(), **self.total.record(), "stages": stages}


def modes(options: SearchOptions) -> dict[str, SearchOptions]:
    """What a knowledge base is compared with: each stage alone, both by plain reciprocal rank fusion, and its own
    fusion."""
    return {
        "dense": replace(options, mode="dense"),
        "bm25": replace(options, mode="bm25"),
        "plain RRF": replace(options, mode="hybrid", fusion="rrf", dense_weight=0.5, k=60),
        "fused": replace(options, mode="hybrid"),
    }


def measure_search(
    kb: KnowledgeBase,
    questions: Sequence[Question],
    name: str,
    options: SearchOptions,
    *,
    rerank: Reranker | None = None,
    per_document: bool = True,
    num_timed: int = 100,
    progress: Progress = lambda num: None,
) -> Measured:
    """Quality over all questions, asked in batches; before that, latency over the first `num_timed`, asked one
    by one, while a second stage has not seen their passages."""
    parts: dict[str, list[float]] = defaultdict(list)

    def ask(text: str) -> None:
        times: dict[str, float] = {}
        kb.search(text, rerank=rerank, per_document=per_document, options=options, times=times)
        for stage, seconds in times.items():
            parts[stage].append(1e3 * seconds)

    total = latency(ask, [one.text for one in questions[:num_timed]])
    hits: list[list[Hit]] = []
    for start in range(0, len(questions), AT_ONCE):
        texts = [one.text for one in questions[start : start + AT_ONCE]]
        hits += kb.search_many(texts, DEPTH, rerank=rerank, per_document=per_document, options=options)
        progress(len(texts))
    stages = {stage: Latency(tuple(sorted(times))) for stage, times in parts.items()}
    return Measured(name, quality(questions, hits), total, stages)


def candidates_for_tuning(options: SearchOptions) -> Iterator[SearchOptions]:
    """Single stages are among them: fusion has to earn its place."""
    yield replace(options, mode="dense")
    yield replace(options, mode="bm25")
    for weight in WEIGHTS:
        yield replace(options, mode="hybrid", fusion="weighted", dense_weight=weight)
        for k in (10, 60):
            yield replace(options, mode="hybrid", fusion="rrf", dense_weight=weight, k=k)


def tune(
    kb: KnowledgeBase,
    questions: Sequence[Question],
    *,
    per_document: bool = True,
    progress: Progress = lambda num: None,
) -> list[tuple[SearchOptions, Quality]]:
    """Every way to fuse, by MRR, best first. The lists of a question are found once and fused in each way. Tune on
    other questions than you report: the best of many numbers is too good."""
    snapshot = kb.store.snapshot()
    if snapshot is None:
        raise UserError(f"{kb.folder} is empty: there is nothing to tune on")
    tried = list(candidates_for_tuning(kb.settings.search))
    results: list[list[list[Hit]]] = [[] for _ in tried]
    held: dict[int, Hit] = {}
    for start in range(0, len(questions), AT_ONCE):
        texts = [one.text for one in questions[start : start + AT_ONCE]]
        for text, vector in zip(texts, kb.embedder.embed_queries(texts), strict=True):
            num = max(tried[0].candidates, searching.PER_LIMIT * DEPTH)
            lists = {"dense": snapshot.dense(vector, num), "bm25": snapshot.bm25(text, num)}
            for options, found in zip(tried, results, strict=True):
                order = (
                    searching.fuse(snapshot, lists, vector, options)
                    if options.mode == "hybrid"
                    else lists[options.mode]
                )
                best = searching.pick(snapshot, order, per_document, DEPTH)
                missing = [place for place, _ in best if place not in held]
                for place, (chunk, _) in zip(missing, snapshot.chunks(missing), strict=True):
                    held[place] = Hit(chunk, 0.0)
                found.append([held[place] for place, _ in best])
        progress(len(texts))
    measured = [(options, quality(questions, found)) for options, found in zip(tried, results, strict=True)]
    return sorted(measured, key=lambda entry: -entry[1].mrr)


def headings() -> tuple[str, ...]:
    return ("search", "MRR@10", "nDCG@10", f"recall@{CUTOFFS[0]}", *(f"@{k}" for k in CUTOFFS[1:]), "p50 ms", "p95 ms")


def row(one: Measured) -> list[str]:
    """Under `headings`."""
    recalls = (f"{one.quality.recalls[k - 1]:.3f}" for k in CUTOFFS)
    times = (f"{one.total.at(share):.1f}" for share in (0.5, 0.95))
    return [one.name, f"{one.quality.mrr:.3f} ± {one.quality.error:.3f}", f"{one.quality.ndcg:.3f}", *recalls, *times]


def stage_rows(measured: Sequence[Measured]) -> list[list[str]]:
    """(stage, p50, p95), each of the last search that has this stage."""
    stages: dict[str, Latency] = {}
    for one in measured:
        stages |= one.stages
    return [[name, f"{found.at(0.5):.1f}", f"{found.at(0.95):.1f}"] for name, found in stages.items()]

"""The modes of a knowledge base side by side on the same questions, and the fusion that suits them best."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from aurify.errors import UserError
from aurify.evaluation.retrieval import CUTOFFS, DEPTH, Quality, Question, rate_retrieval
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.search import PER_LIMIT, SearchOptions, fuse_hits, pick_hits
from aurify.knowledge.types import Hit, Reranker

QUESTIONS_AT_ONCE = 32
WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)  # of dense search, tried for both kinds of fusion
HEADINGS = ("search", "MRR@10", "nDCG@10", f"recall@{CUTOFFS[0]}", *(f"@{k}" for k in CUTOFFS[1:]), "p50 ms", "p95 ms")

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # passes things on, and shows how many of them are left


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single calls, sorted."""

    milliseconds: tuple[float, ...]

    def at(self, share: float) -> float:
        """The least time that so many of the calls did not exceed."""
        return self.milliseconds[max(0, math.ceil(share * len(self.milliseconds)) - 1)]

    def to_record(self) -> dict[str, float]:
        return {"p50_ms": round(self.at(0.5), 2), "p95_ms": round(self.at(0.95), 2)}


@dataclass(frozen=True)
class Measured:
    """One way to search. `stages` are the parts of `total`, except that words are looked up while the query is
    embedded."""

    name: str
    quality: Quality
    total: Latency
    stages: dict[str, Latency]

    def to_record(self) -> dict[str, Any]:
        stages = {name: one.to_record() for name, one in self.stages.items()}
        return {"name": self.name, **self.quality.to_record(), **self.total.to_record(), "stages": stages}

    def to_row(self) -> list[str]:
        """Under HEADINGS."""
        quality = self.quality
        numbers = [f"{quality.mrr:.3f} ± {quality.error:.3f}", f"{quality.ndcg:.3f}"]
        numbers += [f"{quality.recalls[k - 1]:.3f}" for k in CUTOFFS]
        return [self.name, *numbers, *(f"{self.total.at(share):.1f}" for share in (0.5, 0.95))]


def list_measured_stages(measured: Sequence[Measured]) -> list[list[str]]:
    """(stage, p50, p95), each of the last search that has this stage."""
    stages = {name: found for one in measured for name, found in one.stages.items()}
    return [[name, f"{found.at(0.5):.1f}", f"{found.at(0.95):.1f}"] for name, found in stages.items()]


def list_measured_modes(options: SearchOptions) -> dict[str, SearchOptions]:
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
    progress: Progress = iter,
) -> Measured:
    """Quality over all questions, asked in batches. Latency over the first `num_timed`, asked one by one and before
    that: a second stage has not seen their passages then."""
    parts: dict[str, list[float]] = defaultdict(list)

    def ask(text: str) -> None:
        times: dict[str, float] = {}
        kb.search(text, rerank=rerank, per_document=per_document, options=options, times=times)
        for stage, seconds in times.items():
            parts[stage].append(1e3 * seconds)

    total = measure_call_times(ask, [one.text for one in questions[:num_timed]])
    hits: list[list[Hit]] = []
    for start in progress(range(0, len(questions), QUESTIONS_AT_ONCE)):
        texts = [one.text for one in questions[start : start + QUESTIONS_AT_ONCE]]
        hits += kb.search_many(texts, DEPTH, rerank=rerank, per_document=per_document, options=options)
    stages = {stage: Latency(tuple(sorted(times))) for stage, times in parts.items()}
    return Measured(name, rate_retrieval(questions, hits), total, stages)


def measure_call_times(call: Callable[[str], object], texts: Sequence[str], warm_up: int = 3) -> Latency:
    """One call after another, as a person or an agent asks, after some that do not count."""
    for _ in range(warm_up):
        call("warm up")
    times = []
    for text in texts:
        start = time.perf_counter()
        call(text)
        times.append(1e3 * (time.perf_counter() - start))
    return Latency(tuple(sorted(times)))


def list_measured_fusions(options: SearchOptions) -> Iterator[SearchOptions]:
    """Single stages are among them: fusion has to be better than each."""
    yield replace(options, mode="dense")
    yield replace(options, mode="bm25")
    for weight in WEIGHTS:
        yield replace(options, mode="hybrid", fusion="weighted", dense_weight=weight)
        for k in (10, 60):
            yield replace(options, mode="hybrid", fusion="rrf", dense_weight=weight, k=k)


def measure_fusions(
    kb: KnowledgeBase,
    questions: Sequence[Question],
    *,
    per_document: bool = True,
    progress: Progress = iter,
) -> list[tuple[SearchOptions, Quality]]:
    """Every way to fuse, by MRR, best first. The lists of a question are found once and fused in each way. Tune on
    other questions than you report: the best of many numbers is too good."""
    snapshot = kb.store.snapshot()
    if snapshot is None:
        raise UserError(f"{kb.folder} is empty: there is nothing to tune on")

    @cache
    def fetch(index: int) -> Hit:
        [(chunk, _)] = snapshot.chunks([index])
        return Hit(chunk, 0.0)

    tried = list(list_measured_fusions(kb.settings.search))
    results: list[list[list[Hit]]] = [[] for _ in tried]
    num = max(kb.settings.search.candidates, PER_LIMIT * DEPTH)
    vectors = kb.embedder.embed_queries([one.text for one in questions])
    by_meaning = snapshot.dense_many(vectors, num)
    for question, vector, dense in zip(progress(questions), vectors, by_meaning, strict=True):
        lists = {"dense": dense, "bm25": snapshot.bm25(question.text, num)}
        for options, found in zip(tried, results, strict=True):
            order = fuse_hits(snapshot, lists, vector, options) if options.mode == "hybrid" else lists[options.mode]
            found.append([fetch(index) for index, _ in pick_hits(snapshot, order, per_document, DEPTH)])
    rated = [(options, rate_retrieval(questions, found)) for options, found in zip(tried, results, strict=True)]
    return sorted(rated, key=lambda entry: -entry[1].mrr)

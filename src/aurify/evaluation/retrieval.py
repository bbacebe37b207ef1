"""How good a search is: MRR@10, recall@k, nDCG@10 on questions with known answers, and how long each stage takes.

An answer is a document, or some lines of one: then a hit must share at least half of its lines, or of the answer's,
with them, and a file's anchor is no answer. A document found twice counts once. recall@k divides by the answers that
k hits have room for, as BEIR's capped recall does; otherwise a question with 20 answers could not reach recall@1.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aurify.errors import UserError
from aurify.knowledge.types import Hit

DEPTH = 20  # hits of a result that are looked at
CUTOFFS = (1, 5, 20)


@dataclass(frozen=True)
class Answer:
    document: str
    lines: tuple[int, int] | None = None  # first and last, from 1


@dataclass(frozen=True)
class Question:
    text: str
    answers: tuple[Answer, ...]  # at least one


def read_retrieval_questions(path: Path) -> list[Question]:
    """JSON lines: `{"query": "...", "documents": ["id", ...]}`, or `"document": "id"` with or without
    `"lines": [first, last]`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected JSON lines with query and document") from None
    questions = [
        parse_retrieval_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not questions:
        raise UserError(f"{path}: no questions; expected lines such as {{'query': '...', 'document': 'its id'}}")
    return questions


def parse_retrieval_question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("query"), str) or not row["query"].strip():
        raise UserError(f"{where}: expected an object with a text under 'query'")
    documents = row.get("documents", [row["document"]] if "document" in row else None)
    if not isinstance(documents, list) or not documents or not all(isinstance(one, str) for one in documents):
        raise UserError(f"{where}: expected the id of an answer under 'document', or a list of them under 'documents'")
    span = row.get("lines")
    if span is not None and (len(documents) != 1 or not is_answer_span(span)):
        raise UserError(f"{where}: lines is {span!r}; expected [first, last] of one document, counted from 1")
    return Question(row["query"], tuple(Answer(one, tuple(span) if span else None) for one in dict.fromkeys(documents)))


def is_answer_span(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    return whole and 1 <= value[0] <= value[1]


def split_retrieval_questions(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """One half to tune on and one to report, by the hash of the text: the same whatever the order of the file."""
    parts: tuple[list[Question], list[Question]] = ([], [])
    for one in questions:
        parts[sha256(one.text.encode("utf-8", "replace")).digest()[0] % 2].append(one)
    return parts


def is_retrieved_answer(hit: Hit, answer: Answer) -> bool:
    chunk = hit.chunk
    if chunk.document != answer.document or answer.lines is None:
        return chunk.document == answer.document
    first, last = answer.lines
    shared = min(last, chunk.last_line) - max(first, chunk.first_line) + 1
    shorter = min(last - first, chunk.last_line - chunk.first_line) + 1
    return chunk.kind != "anchor" and 2 * shared >= shorter


def find_answer_ranks(question: Question, hits: Sequence[Hit]) -> list[int]:
    """The rank, from 1, at which each answer that was found comes first."""
    found = (
        next((rank for rank, hit in enumerate(hits[:DEPTH], 1) if is_retrieved_answer(hit, one)), None)
        for one in question.answers
    )
    return sorted(rank for rank in found if rank is not None)


def reciprocal_rank(ranks: Sequence[int], depth: int = 10) -> float:
    return 1 / ranks[0] if ranks and ranks[0] <= depth else 0.0


def retrieval_recall(ranks: Sequence[int], num_answers: int, k: int) -> float:
    return sum(rank <= k for rank in ranks) / min(num_answers, k)


def ndcg(ranks: Sequence[int], num_answers: int, depth: int = 10) -> float:
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= depth)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(num_answers, depth) + 1))


@dataclass(frozen=True)
class Quality:
    """Means over the questions. `error` is the standard error of the MRR."""

    num: int
    mrr: float
    error: float
    ndcg: float
    recalls: tuple[float, ...]  # at 1, 2, ... DEPTH

    def to_record(self) -> dict[str, float]:
        at = {f"recall@{k}": round(self.recalls[k - 1], 4) for k in CUTOFFS}
        numbers = {"mrr@10": round(self.mrr, 4), "error": round(self.error, 4), "ndcg@10": round(self.ndcg, 4)}
        return {"questions": self.num, **numbers, **at}


def rate_retrieval(questions: Sequence[Question], results: Sequence[Sequence[Hit]]) -> Quality:
    ranks = [find_answer_ranks(one, hits) for one, hits in zip(questions, results, strict=True)]
    num_answers = [len(one.answers) for one in questions]
    reciprocal = [reciprocal_rank(one) for one in ranks]
    return Quality(
        num=len(questions),
        mrr=statistics.fmean(reciprocal),
        error=statistics.stdev(reciprocal) / math.sqrt(len(ranks)) if len(ranks) > 1 else 0.0,
        ndcg=statistics.fmean(map(ndcg, ranks, num_answers)),
        recalls=tuple(
            statistics.fmean(retrieval_recall(one, num, k) for one, num in zip(ranks, num_answers, strict=True))
            for k in range(1, DEPTH + 1)
        ),
    )

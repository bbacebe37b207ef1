"""Metrics against numbers worked out by hand, and what counts as an answer."""

from __future__ import annotations

import json
import math
import time

import pytest

from aurify.errors import UserError
from aurify.evaluation import retrieval as measure
from aurify.evaluation.comparison import Latency, measure_call_times
from aurify.evaluation.retrieval import Answer, Question
from aurify.knowledge.types import Chunk, Hit


def hit(document: str, first: int = 1, last: int = 10, kind: str = "prose") -> Hit:
    return Hit(Chunk(document, 0, "text", 0, 4, first, last, kind=kind), 1.0)  # type: ignore[arg-type]


def hits(*documents: str) -> list[Hit]:
    return [hit(document) for document in documents]


def asks(*documents: str) -> Question:
    return Question(f"who knows {documents}?", tuple(map(Answer, documents)))


def test_metrics_by_hand():
    questions = [asks("a"), asks("b"), asks("c", "d", "e"), asks("z")]
    results = [hits("a", "x"), hits("x", "y", "b"), hits("x", "d", "c", "d"), hits("x")]
    quality = measure.rate_retrieval(questions, results)
    assert quality.mrr == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)
    assert quality.recalls[0] == pytest.approx(1 / 4)
    assert quality.recalls[1] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)  # two places hold two of three answers
    assert quality.recalls[2] == quality.recalls[19] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    log = math.log2
    ideal = 1 + 1 / log(3) + 1 / log(4)
    assert quality.ndcg == pytest.approx((1 + 1 / log(4) + (1 / log(3) + 1 / log(4)) / ideal + 0) / 4)
    spread = [1, 1 / 3, 1 / 2, 0]
    mean = sum(spread) / 4
    assert quality.error == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in spread) / 3 / 4))


def test_places_beyond_the_cutoffs_do_not_count():
    late = hits(*"bcdefghijk", "a")
    assert measure.rate_retrieval([asks("a")], [late]).mrr == measure.rate_retrieval([asks("a")], [late]).ndcg == 0
    zero = dict.fromkeys(("mrr@10", "error", "ndcg@10", "recall@1", "recall@5"), 0)
    assert measure.rate_retrieval([asks("a")], [late]).to_record() == {"questions": 1, **zero, "recall@20": 1}
    assert not any(measure.rate_retrieval([asks("a")], [hits(*"bcdefghijklmnopqrstu", "a")]).recalls)


@pytest.mark.parametrize(
    ("first", "last", "kind", "expected"),
    [
        (10, 20, "definition", True),
        (1, 100, "definition", True),  # holds the answer
        (15, 16, "definition", True),  # is a part of it
        (18, 22, "definition", True),  # three of its own five lines
        (19, 22, "definition", True),
        (20, 29, "definition", False),
        (1, 100, "anchor", False),
    ],
)
def test_lines_of_an_answer(first, last, kind, expected):
    assert measure.is_retrieved_answer(hit("a", first, last, kind), Answer("a", (10, 20))) is expected
    assert not measure.is_retrieved_answer(hit("b", first, last, kind), Answer("a", (10, 20)))
    assert measure.is_retrieved_answer(hit("a", first, last, kind), Answer("a"))


def test_halves_are_the_same_whatever_the_order():
    questions = [asks(str(k)) for k in range(400)]
    one, two = measure.split_retrieval_questions(questions)
    assert sorted(map(str, one + two)) == sorted(map(str, questions)) and 160 < len(one) < 240
    again, _ = measure.split_retrieval_questions(questions[::-1])
    assert set(again) == set(one)


def test_latency():
    waited = iter([0.0] * 3 + [0.001, 0.03, 0.002])
    found = measure_call_times(lambda _: time.sleep(next(waited)), ["a", "b", "c"])
    assert 1 <= found.at(0.3) < found.at(0.5) < 25 < 30 <= found.at(0.95) == found.at(1.0)
    assert Latency(tuple(range(1, 101))).to_record() == {"p50_ms": 50, "p95_ms": 95}


def test_questions_from_a_file(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [
        {"query": "one", "document": "a"},
        {"query": "two", "documents": ["b", "c", "b"], "note": "ignored"},
        {"query": "three", "document": "d", "lines": [3, 9]},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    assert measure.read_retrieval_questions(file) == [
        Question("one", (Answer("a"),)),
        Question("two", (Answer("b"), Answer("c"))),
        Question("three", (Answer("d", (3, 9)),)),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "text under 'query'"),
        ('{"query": " ", "document": "a"}', "text under 'query'"),
        ('{"query": "a"}', "under 'document'"),
        ('{"query": "a", "documents": []}', "under 'document'"),
        ('{"query": "a", "document": 3}', "under 'document'"),
        ('{"query": "a", "document": "b", "lines": [4]}', "lines is"),
        ('{"query": "a", "document": "b", "lines": [0, 3]}', "lines is"),
        ('{"query": "a", "documents": ["b", "c"], "lines": [1, 3]}', "of one document"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"query": "a", "document": "b"}}\n{line}\n')
    with pytest.raises(UserError, match=message) as error:
        measure.read_retrieval_questions(file)
    assert str(error.value).startswith(f"{file}:2: ")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_questions_is_refused(tmp_path, content):
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"questions\.jsonl"):
        measure.read_retrieval_questions(file)

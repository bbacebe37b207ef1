"""Modes compared and fusion tuned on a small knowledge base whose embedder knows synonyms and little else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.errors import UserError
from aurify.evaluation.comparison import list_measured_modes, measure_fusions, measure_search
from aurify.evaluation.retrieval import Answer, Question
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.types import Document

SYNONYMS = {"physician": "doctor", "automobile": "car", "feline": "cat", "residence": "house"}
WORDS = ("doctor", "car", "cat", "house", "tree", "river", "stone", "cloud")


class Synonyms:
    """Words to a few numbers, so that many collide; synonyms to the same ones."""

    name, dim, max_tokens = "synonyms", 12, 64

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.full((len(texts), self.dim), 1e-3, np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[zlib.crc32(SYNONYMS.get(word, word).encode()) % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    embed_queries = embed_documents


class Backwards:
    """A second stage that likes the word `unit7` above all."""

    name = "backwards"

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float("unit7" in text.split()) for text in texts]


def documents() -> list[Document]:
    return [Document(f"d{k}", f"{WORDS[k % 8]} unit{k} {WORDS[k // 8]} {WORDS[k * 3 % 8]}") for k in range(64)]


def ask(query: str, *ids: int) -> Question:
    return Question(query, tuple(Answer(f"d{k}") for k in ids))


QUESTIONS = [*(ask(f"unit{k} {WORDS[k % 8]}", k) for k in range(0, 64, 3)), ask("physician automobile", 1, 8)]


@pytest.fixture
def kb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = KnowledgeBase.create(tmp_path / "kb" / "words", Synonyms())
    base.add(documents())
    monkeypatch.setattr("aurify.knowledge.knowledge_base.load_embedder", lambda name: Synonyms())
    return base


def test_modes_are_told_apart(kb):
    found = {
        name: measure_search(kb, QUESTIONS, name, options, num_timed=5)
        for name, options in list_measured_modes(kb.settings.search).items()
    }
    assert list(found) == ["dense", "bm25", "plain RRF", "fused"]
    assert found["bm25"].quality.mrr > found["dense"].quality.mrr + 0.2  # names of units tell nothing to the embedder
    assert found["dense"].stages.keys() >= {"embed", "dense"} and "bm25" not in found["dense"].stages
    assert found["fused"].stages.keys() >= {"embed", "dense", "bm25", "fuse", "fetch"}
    for one in found.values():
        assert len(one.total.milliseconds) == 5 and one.total.at(0.5) >= max(s.at(0.0) for s in one.stages.values())
        assert one.quality.num == len(QUESTIONS)


def test_a_second_stage_decides(kb):
    fused = kb.settings.search
    plain = measure_search(kb, [ask("unit0 doctor", 7)], "fused", fused, num_timed=1)
    ordered = measure_search(kb, [ask("unit0 doctor", 7)], "reranked", fused, rerank=Backwards(), num_timed=1)
    assert plain.quality.mrr < ordered.quality.mrr == 1 and "rerank" in ordered.stages


def test_tuning_measures_what_search_does(kb):
    questions = QUESTIONS[::4]
    tried = measure_fusions(kb, questions)
    assert [quality.mrr for _, quality in tried] == sorted((quality.mrr for _, quality in tried), reverse=True)
    assert {options.mode for options, _ in tried} == {"dense", "bm25", "hybrid"}
    for options, quality in tried:
        assert measure_search(kb, questions, "", options, num_timed=1).quality == quality, options


def test_tuning_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="empty"):
        measure_fusions(KnowledgeBase.create(tmp_path / "empty", Synonyms()), QUESTIONS)


def write_questions(path: Path) -> None:
    rows = [{"query": one.text, "documents": [answer.document for answer in one.answers]} for one in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["kb", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_eval_prints_tables_and_draws(kb, tmp_path):
    write_questions(tmp_path / "questions.jsonl")
    output = run("eval", "words", "--queries", "questions.jsonl", "--timed", "3")
    head = "search MRR@10 nDCG@10 recall@1 @5 @20 p50 ms p95 ms"
    assert head.split() in [line.split() for line in output.splitlines()], output
    for word in ("plain RRF", "bm25", "embed", "fetch", f"{len(QUESTIONS)} questions", "kb/words/eval.svg"):
        assert word in output, output
    picture = ElementTree.parse(tmp_path / "kb" / "words" / "eval.svg").getroot()
    curves = [one for one in picture.iter() if one.tag.endswith("polyline")]
    assert len(curves) == 4 and all(len(one.get("points", "").split()) == 20 for one in curves)


def test_eval_tunes_on_one_half_and_keeps_what_was_best(kb, tmp_path):
    write_questions(tmp_path / "questions.jsonl")
    arguments = ("eval", "words", "--queries", "questions.jsonl", "--tune", "--json", "--plot", "picture.svg")
    output = run(*arguments)
    record = json.loads(output[output.index('{"kb"') :])
    num = {one["questions"] for one in record["results"]}
    assert len(num) == 1 and 0 < num.pop() < len(QUESTIONS)
    assert (tmp_path / "picture.svg").exists()
    kept = KnowledgeBase.open(kb.folder).settings.search
    from aurify.evaluation.retrieval import read_retrieval_questions, split_retrieval_questions

    first, _ = split_retrieval_questions(read_retrieval_questions(tmp_path / "questions.jsonl"))
    assert kept == measure_fusions(kb, first)[0][0] and f"best of these {len(first)} questions" in output


def test_eval_refuses_answers_that_are_not_there(kb, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"query": "a", "document": "d1"}\n{"query": "b", "document": "e1"}\n')
    output = run("eval", "words", "--queries", "questions.jsonl", code=2)
    assert "1 answers are not in kb/words, such as 'e1'" in output
    assert "--timed is 0" in run("eval", "words", "--queries", "questions.jsonl", "--timed", "0", code=2)


def test_tuning_on_a_few_questions_is_refused_and_changes_nothing(kb, tmp_path):
    before = KnowledgeBase.open(kb.folder).settings
    rows = [{"query": f"unit{k}", "document": f"d{k}"} for k in range(19)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = run("eval", "--kb", "words", "--queries", "few.jsonl", "--tune", code=2)
    assert "19 questions are too few" in output and "--tune needs 20 or more" in " ".join(output.split())
    assert KnowledgeBase.open(kb.folder).settings == before and not (kb.folder / "eval.svg").exists()


def test_a_knowledge_base_is_named_in_one_way_everywhere(kb):
    assert run("info", "--kb", "words", "--json") == run("info", "words", "--json")
    assert "give one knowledge base" in run("info", "--kb", "words", "other", code=2)
    assert "--kb is empty; give a name such as --kb notes" in run("info", code=2)
    assert "no knowledge base at kb/word" in run("serve", "--kb", "word", code=2)


def test_list_and_info(kb, tmp_path):
    assert run("list") == "words: 64 documents, 64 passages\n"
    facts = json.loads(run("info", "words", "--json"))
    assert facts["documents"] == 64 and facts["formats"] == {"text": 64} and facts["embedder"] == "synonyms"
    assert "max_tokens" in run("info", "words")
    assert "no knowledge base" in run("info", "other", code=2)

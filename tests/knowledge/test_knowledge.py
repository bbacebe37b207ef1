"""The knowledge base as its users see it: what is added is found, again and again the same; two read while one
writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from aurify.errors import UserError
from aurify.knowledge import knowledge_base as module
from aurify.knowledge.chunking.chunk import ChunkOptions
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.search import SearchOptions
from aurify.knowledge.types import Document

sys.path.insert(0, str(Path(__file__).parent))
from words import WordEmbedder, some_documents

DOCUMENTS = [
    Document("zoo/fish.md", "The fish swims in the sea.", "Fish", "markdown", "zoo", {"legs": 0}),
    Document("zoo/dog.md", "The dog runs through the garden.", "Dog", "markdown", "zoo", {"legs": 4}),
    Document("zoo/bird.md", "The bird flies through the air, over the sea.", "Bird", "markdown", "zoo", {"legs": 2}),
    Document("notes/empty.md", " \n", source="notes"),
]


@pytest.fixture
def kb(tmp_path):
    base = KnowledgeBase.create(tmp_path / "kb", WordEmbedder())
    base.add(DOCUMENTS)
    return base


def names(hits):
    return [hit.chunk.document for hit in hits]


def content(base):
    """All that a search could ever show."""
    snapshot = base.store.snapshot()
    return base.records(), snapshot.chunks(range(len(snapshot)))


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_the_right_passage_comes_first(kb, mode):
    hits = kb.search("which fish swims in the sea?", mode=mode)
    assert names(hits)[0] == "zoo/fish.md" and hits[0].metadata == {"legs": 0}
    assert hits[0].chunk.text == DOCUMENTS[0].text
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert "zoo/dog.md" not in names(hits) or mode != "bm25"
    assert names(kb.search("sea", mode=mode, where={"legs": {">": 0}}))[0] == "zoo/bird.md"
    assert len(kb.search("sea", 1, mode)) == 1


def test_a_hit_tells_what_each_stage_thought_of_it(kb):
    hits = kb.search("fish", mode="hybrid")
    assert hits[0].scores.keys() == hits[0].ranks.keys() == {"dense", "bm25", "fused"}
    assert hits[0].ranks == {"dense": 1, "bm25": 1, "fused": 1} and hits[0].score == hits[0].scores["fused"] == 1
    assert hits[1].scores.keys() == {"dense", "fused"} and hits[1].ranks["dense"] == 2
    assert kb.search("fish", mode="dense")[0].scores.keys() == {"dense"}
    rank = kb.search("fish", options=SearchOptions(fusion="rrf", dense_weight=0.25))[0]
    assert rank.score == pytest.approx(1 / 61)


def test_many_queries_are_embedded_once_and_answered_alike(kb):
    queries = ["fish", "garden", "who flies?", ""]
    before, times = kb.embedder.num_batches, {}
    together = kb.search_many(queries, times=times)
    assert kb.embedder.num_batches == before + 1
    assert together == [kb.search(query) for query in queries]
    assert together[3] == kb.search(" \n") == []  # a blank one asks for nothing
    assert {"embed", "dense", "bm25", "fuse", "fetch"} <= times.keys() and min(times.values()) >= 0
    assert kb.search_many([]) == []


def test_words_need_no_embedder(kb, monkeypatch):
    monkeypatch.setattr(module, "load_embedder", lambda name: pytest.fail("loaded"))
    again = KnowledgeBase.open(kb.folder)
    assert names(again.search("garden", mode="bm25")) == ["zoo/dog.md"] and len(again.digests()) == 4


class Longest:
    name = "longest"

    def scores(self, query, texts):
        return [float(len(text)) for text in texts]


def test_a_second_stage_has_the_last_word(kb):
    hits = kb.search("fish", rerank=Longest())
    assert names(hits)[0] == "zoo/bird.md" and hits[0].score == hits[0].scores["reranked"] == len(
        hits[0].chunk.to_embedding_text()
    )
    assert [hit.ranks["reranked"] for hit in hits] == [1, 2, 3] and {hit.ranks["fused"] for hit in hits} == {1, 2, 3}
    narrow = SearchOptions(reranked=1)
    assert names(kb.search("fish", 1, rerank=Longest(), options=narrow)) == ["zoo/fish.md"]


def test_one_hit_a_document_or_all_that_do_not_overlap(tmp_path):
    kb = KnowledgeBase.create(tmp_path / "kb", WordEmbedder(), ChunkOptions(max_tokens=16, overlap=0, min_tokens=0))
    kb.add([Document("a", "apple one. " * 10), Document("b", "pear two. " * 10)])
    assert sorted(names(kb.search("apple", mode="dense"))) == ["a", "b"]
    several = kb.search("apple", mode="dense", per_document=False)
    assert names(several).count("a") > 1 and len({hit.chunk.id for hit in several}) == len(several)
    ends = sorted((hit.chunk.document, hit.chunk.start, hit.chunk.end) for hit in several)
    assert all(one[0] != other[0] or one[2] <= other[1] for one, other in pairwise(ends))


def test_unchanged_documents_are_left_alone_and_changed_ones_replaced(kb):
    before = kb.embedder.num_batches
    summary = kb.add(DOCUMENTS)
    assert (summary.unchanged, summary.documents, kb.embedder.num_batches) == (4, 4, before)
    changed = replace(DOCUMENTS[0], text="A whale is no fish, but it swims.")
    summary = kb.add([changed, DOCUMENTS[1], replace(changed, text="later"), Document("new", "a new one")])
    assert (summary.added, summary.replaced, summary.unchanged, summary.repeated) == (1, 1, 1, 1)
    assert summary.chunks == 2 and summary.tokens > 8 and summary.seconds > 0
    assert names(kb.search("whale", mode="bm25")) == ["zoo/fish.md"] and len(kb.digests()) == 5
    assert kb.search("sea", mode="bm25")[0].chunk.document == "zoo/bird.md"
    metadata = replace(changed, metadata={"legs": 1})
    assert kb.add([metadata]).replaced == 1 and kb.search("whale")[0].metadata == {"legs": 1}


def test_what_is_removed_is_not_found(kb):
    assert kb.remove(["zoo/fish.md", "not there"]) == 1
    assert kb.digests("zoo").keys() == {"zoo/dog.md", "zoo/bird.md"}
    assert kb.digests("notes").keys() == {"notes/empty.md"}
    assert "zoo/fish.md" not in names(kb.search("fish"))


def test_what_cannot_be_stored_is_counted(kb):
    bad = [
        Document("bad\udcff.txt", "text"),
        Document("b", "text \ud800"),
        Document("c", "text", metadata={"x": float("nan")}),
        Document("d", "text", metadata={"x": object()}),
        Document("", "text"),
        Document("good\x00\u2028", "a \x00 text with 'quotes'", metadata={"k\"'": "\x00v"}),
    ]
    summary = kb.add(bad)
    assert summary.added == 1 and summary.refused == {
        "text that is no valid Unicode": 2,
        "metadata with a number that is not finite": 1,
        "metadata that is neither text, number nor boolean": 1,
        "no id": 1,
    }
    assert kb.search("quotes", 1)[0].chunk.text == "a \x00 text with 'quotes'" and kb.add(bad[5:]).unchanged == 1


def test_stopping_anywhere_and_going_on_gives_the_same_as_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 8)
    documents = some_documents(40)
    small = ChunkOptions(max_tokens=40, overlap=8, min_tokens=4)
    whole = KnowledgeBase.create(tmp_path / "whole", WordEmbedder(), small)
    reports = []
    whole.add(documents, progress=lambda summary: reports.append(summary.documents))
    assert reports[-1] == 40 and len(reports) > 10 and reports == sorted(reports)

    pieces = KnowledgeBase.create(tmp_path / "pieces", WordEmbedder(), small)
    pieces.add([replace(document, text=document.text + " once") for document in documents[:7]])
    for stop_after in range(1, 9):
        calls = iter(range(stop_after))

        def stop(*_, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            name = ("_delete_chunks", "_forget")[stop_after % 2]
            patched.setattr(pieces.store, name, stop)
            patched.setattr(module, "find_document_fault", stop)
            pieces.add(documents)
        pieces = KnowledgeBase.open(tmp_path / "pieces", WordEmbedder())
    pieces.add(documents)
    assert content(pieces) == content(whole)
    queries = ["word1 word7", "word20", "Number 7"]
    for mode in ("dense", "bm25", "hybrid"):
        assert pieces.search_many(queries, 40, mode) == whole.search_many(queries, 40, mode)


READER = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
from words import WordEmbedder
from aurify.knowledge.knowledge_base import KnowledgeBase
kb = KnowledgeBase.open(sys.argv[1], WordEmbedder())
seen, done = [], False
while True:
    hits = kb.search("word1 word2 word3", 10, where={"parity": "odd"})
    held = {hit.chunk.document for hit in kb.search("anchor", 3)}
    assert "the anchor" in held, held  # replaced all the time, and never missing
    assert all(hit.metadata["parity"] == "odd" for hit in hits)
    seen.append(len(kb.digests("folder")))
    print(len(seen), flush=True)
    time.sleep(0.03)  # leaves the writer some of the machine
    if done:
        break
    done = (kb.folder / "done").exists()
assert seen == sorted(seen), seen
print(json.dumps([[hit.chunk.id, hit.score] for hit in hits]))
"""


def test_two_readers_during_a_writer(tmp_path, monkeypatch):
    """In processes of their own: each search sees one state of the base, and later ones never an older."""
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 10)
    kb = KnowledgeBase.create(tmp_path / "kb", WordEmbedder())
    anchor = Document("the anchor", "anchor 0", metadata={"parity": "none"})
    kb.add([anchor])
    command = [sys.executable, "-c", READER, str(kb.folder), str(Path(__file__).parent)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "1\n"
        documents = some_documents(30)
        for start in range(0, 30, 10):
            kb.add([replace(anchor, text=f"anchor {start}"), *documents[start : start + 10]])
        (kb.folder / "done").touch()
        outputs = [reader.communicate(timeout=60)[0].splitlines() for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert [reader.returncode for reader in readers] == [0, 0]
    expected = [[hit.chunk.id, hit.score] for hit in kb.search("word1 word2 word3", 10, where={"parity": "odd"})]
    assert [json.loads(lines[-1]) for lines in outputs] == [expected, expected] and len(expected) == 10
    assert all(len(lines) > 2 for lines in outputs)


def test_a_second_writer_is_told_to_wait(kb, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_FOR_THE_LOCK", 0.01)
    other = KnowledgeBase.open(kb.folder, WordEmbedder())

    def documents():
        with pytest.raises(UserError, match="is being written to by another process"):
            other.add(DOCUMENTS)
        assert names(other.search("garden", mode="bm25")) == ["zoo/dog.md"]
        yield Document("late", "a late one")

    assert kb.add(documents()).added == 1 and other.remove(["late"]) == 1


def test_settings_are_remembered(tmp_path, kb):
    tuned = SearchOptions(mode="dense", dense_weight=0.3, candidates=7)
    kb.remember(tuned)
    again = KnowledgeBase.open(str(kb.folder))
    assert again.settings == replace(kb.settings, search=tuned) and again.settings.embedder == "words"
    with pytest.raises(UserError, match="embedder 'words' is neither a folder, a hub id"):
        again.search("x")
    with pytest.raises(UserError, match=r"its vectors have 256 numbers, those of embedder 'words' have 16"):
        KnowledgeBase.open(kb.folder, WordEmbedder(16)).search("x")


def test_mistakes_are_said_plainly(tmp_path, kb):
    with pytest.raises(UserError, match="already is a knowledge base"):
        KnowledgeBase.create(kb.folder, WordEmbedder())
    with pytest.raises(UserError, match=r"no knowledge base at .*nope; `aurify ingest"):
        KnowledgeBase.open(tmp_path / "nope")
    with pytest.raises(UserError, match="limit is 0"):
        kb.search("x", 0)
    with pytest.raises(UserError, match=r"mode is 'bm26'.*did you mean 'bm25'"):
        kb.search("x", mode="bm26")
    for wrong in ({"dense_weight": 2.0}, {"candidates": 0}, {"fusion": "max"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SearchOptions(**wrong)
    (kb.folder / "settings.json").write_text('{"embeder": "x"}')
    with pytest.raises(UserError, match=r"settings.json: unknown key 'embeder'; did you mean 'embedder'"):
        KnowledgeBase.open(kb.folder)
    (kb.folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings.json is not JSON"):
        KnowledgeBase.open(kb.folder)


@pytest.mark.parametrize(
    ("language", "found"), [("English", {"run"}), ("German", {"haus"}), ("none", set())], ids=lambda value: str(value)
)
def test_words_are_those_of_a_language(tmp_path, language, found):
    kb = KnowledgeBase.create(tmp_path / "kb", WordEmbedder(), language=language)
    kb.add([Document("run", "running"), Document("haus", "der Häuser")])
    again = KnowledgeBase.open(kb.folder, WordEmbedder())
    assert {*names(again.search("runs", mode="bm25")), *names(again.search("Häusern", mode="bm25"))} == found
    assert len(again.search("der", mode="bm25")) == (language != "German")
    with pytest.raises(UserError, match=r"language is 'german'; expected one of Arabic, .*did you mean 'German'"):
        KnowledgeBase.create(tmp_path / "other", WordEmbedder(), language="german")


def test_an_empty_base_finds_nothing(tmp_path):
    kb = KnowledgeBase.create(tmp_path / "kb", WordEmbedder())
    assert kb.search("x") == [] and kb.add([]).documents == 0 and kb.remove(["a"]) == 0
    kb.add([DOCUMENTS[3]])
    assert kb.search_many(["x", "y"]) == [[], []] and len(kb.digests()) == 1

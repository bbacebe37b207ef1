"""The store on its own: what is written is read again, what is searched is exact, and an interrupted writer leaves
nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from aurify.errors import UserError
from aurify.knowledge import snapshot as reading
from aurify.knowledge import store as writing
from aurify.knowledge.store import ChunkRow, LanceStore, Record
from aurify.knowledge.types import Chunk
from aurify.knowledge.where import where_to_sql

TEXTS = ("red apple", "green apple", "blue sky", 'it\'s a "red" sky\n\x00 at 100% [night] é \U0001f319', "the sea")


def rows_of(document, texts=TEXTS, seed=0, **values):
    vectors = np.random.default_rng(seed).standard_normal((len(texts), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chunks = [
        Chunk(document, i, text, i, i + 5, i + 1, i + 2, "A title", ("one", "two"), "definition", "import x")
        for i, text in enumerate(texts)
    ]
    return [ChunkRow(chunk, vector, **values) for chunk, vector in zip(chunks, vectors, strict=True)]


@pytest.fixture
def store(tmp_path):
    return LanceStore(tmp_path)


def dense(snapshot, vector, limit, among=None):
    return next(snapshot.dense_many(vector[None], limit, among))


def found(snapshot, indices):
    return [(snapshot.id(index), score) for index, score in indices]


def test_everything_comes_back(store):
    rows = rows_of("a'b.py", source="s'", format="python", metadata={"year": 2024, "x": 1.5, "ok": True, "é": 'q"'})
    record = Record("a'b.py", "digest", "s'", "A title", "python", 5, 99)
    store.add(rows, [record])
    again = LanceStore(store.folder)
    snapshot = again.snapshot()
    assert again.records() == [record] and again.digests() == again.digests("s'") == {"a'b.py": "digest"}
    assert again.digests("other") == {} and again.num_chunks() == 5 and again.dim() == 8
    order = [4, 0, 3]
    held = snapshot.chunks(order)
    assert [chunk for chunk, _ in held] == [rows[index].chunk for index in order]
    assert held[0][1] == {"year": 2024, "x": 1.5, "ok": True, "é": 'q"'}


def test_an_empty_store_is_no_error(store):
    assert store.snapshot() is None and store.digests() == {} and store.records() == [] and store.dim() is None
    assert store.sweep(store.digests().keys()) == store.num_chunks() == 0
    store.remove(["a"])
    store.tidy()


@pytest.mark.parametrize("name", ["chunks", "documents"])
def test_a_writer_that_was_killed_while_it_made_a_table_is_no_error(tmp_path, name):
    (tmp_path / f"{name}.lance" / "_versions").mkdir(parents=True)
    store = LanceStore(tmp_path)
    assert store.records() == [] and store.sweep(set()) == 0
    store.add(rows_of("a"), [Record("a", "digest")])
    assert [record.id for record in LanceStore(tmp_path).records()] == ["a"]


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_dense_is_exact(store, monkeypatch, in_memory):
    monkeypatch.setattr(reading, "IN_MEMORY", in_memory)
    rows = rows_of("d", [f"text {i}" for i in range(60)])
    store.add(rows[:40], [Record("d", "x")])
    store.add(rows[40:], [Record("e", "x")])
    query = rows_of("q", ["q"], seed=5)[0].vector
    expected = sorted(((float(row.vector @ query), row.chunk.id) for row in rows), reverse=True)
    snapshot = store.snapshot()
    indices = dense(snapshot, query, 7)
    assert found(snapshot, indices) == [(id, pytest.approx(score, abs=2e-6)) for score, id in expected[:7]]
    chosen = [index for index, _ in dense(snapshot, query, 60)][30:]
    assert [index for index, _ in dense(snapshot, query, 3, np.sort(chosen))] == chosen[:3]
    assert dense(snapshot, query, 3, np.array([], int)) == []
    assert snapshot.cosines(query, chosen[:2]) == pytest.approx([score for score, _ in expected[30:32]], abs=2e-6)


def test_equal_scores_are_ordered_by_id_wherever_the_limit_cuts(store):
    same = np.full(8, 8**-0.5, np.float32)
    rows = [ChunkRow(Chunk(f"d{i:02}", 0, "same words", 0, 9, 1, 1), same) for i in (7, 3, 9, 1, 5, 0, 8, 2, 6, 4)]
    store.add(rows, [Record(row.chunk.document, "x") for row in rows])
    store.tidy()
    snapshot = store.snapshot()
    for limit in (1, 3, 10):
        expected = [f"d{i:02}#0" for i in range(limit)]
        assert [snapshot.id(index) for index, _ in dense(snapshot, same, limit)] == expected
        assert [snapshot.id(index) for index, _ in snapshot.bm25("words", limit)] == expected


def test_words_are_found_and_signs_are_only_signs(store):
    store.add(rows_of("d", metadata={"kind": "x"}), [Record("d", "x")])
    snapshot = store.snapshot()

    def ids(query, limit=9, among=None):
        return {snapshot.id(index) for index, _ in snapshot.bm25(query, limit, among)}

    assert ids("apples") == {"d#0", "d#1"}  # stems
    assert ids('"red" AND (sky OR) -y* ~') == {"d#0", "d#2", "d#3"}
    assert ids("'; DROP TABLE") == ids("") == ids("the") == set()
    assert ids("apple", 1, np.array([1, 2])) == {"d#1"}
    assert ids("apple", 5, np.array([2, 3])) == ids("apple", 5, np.array([], int)) == set()


def test_conditions_on_metadata(store):
    for number, values in enumerate(
        ({"year": 2019, "topic": "heart"}, {"year": 2021.5, "topic": "lung"}, {"year": "soon", "new": True}, {})
    ):
        store.add(rows_of(f"d{number}", ["t"], metadata=values, format="go"), [Record(f"d{number}", "x")])
    snapshot = store.snapshot()

    def ids(**where):
        where = {key.replace("__", "."): value for key, value in where.items()}
        indices = snapshot.find_matching(where)
        return [snapshot.id(index)[:2] for index in indices]

    assert ids(topic="heart") == ["d0"] and ids(topic=["heart", "lung"]) == ["d0", "d1"]
    assert ids(year=2019) == ids(year=2019.0) == ids(year="2019") == ["d0"]
    assert ids(year={">=": 2019, "<": 2021}) == ["d0"] and ids(year={">": 2019}) == ["d1"]
    assert ids(year="soon") == ["d2"]
    assert ids(topic={"!=": "heart"}) == ["d1"] and ids(new=True) == ["d2"] and ids(new=False) == ids(nothing="x") == []
    assert ids(topic=[]) == [] and ids(document__id="d3") == ["d3"] and len(ids(document__format="go")) == 4
    assert ids(topic="x' OR '1'='1") == ids(**{"x' OR '1'='1": "y"}) == []
    assert snapshot.find_matching({}) is None and where_to_sql(None) is None
    for wrong in ({"a": None}, {"a": {"~": 1}}, {"a": [{}]}):
        with pytest.raises(UserError, match=r"where: 'a' is .*; expected a text, number or boolean"):
            where_to_sql(wrong)


def test_replacing_and_removing(store):
    store.add([*rows_of("a"), *rows_of("b", seed=1)], [Record("a", "1"), Record("b", "1")])
    store.replace(rows_of("a", ["new", "words"], seed=2), [Record("a", "2")])
    assert store.digests() == {"a": "2", "b": "1"} and store.num_chunks() == 7
    snapshot = store.snapshot()
    assert [chunk.text for chunk, _ in snapshot.chunks([0, 1])] == ["new", "words"]
    store.replace([], [Record("a", "3")])
    assert store.digests()["a"] == "3" and store.num_chunks() == 5
    store.remove(["b", "not there"])
    assert store.digests() == {"a": "3"} and store.num_chunks() == 0
    assert [chunk.text for chunk, _ in snapshot.chunks([0, 1])] == ["new", "words"]  # a reader keeps its version


@pytest.mark.parametrize("step", ["add", "replace", "remove"])
def test_whatever_an_interrupted_writer_left_is_swept(store, monkeypatch, step):
    """Stopped between its two commits."""
    store.add([*rows_of("a"), *rows_of("b", seed=1)], [Record("a", "1"), Record("b", "1")])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store, "_add_records", stop)
        patched.setattr(store, "_delete_chunks", stop)
        if step == "remove":
            store.remove(["b"])
        name = "b" if step == "replace" else "c"
        getattr(store, step)(rows_of(name, seed=3), [Record(name, "2")])
    assert store.digests().keys() == ({"a", "b"} if step == "add" else {"a"})  # so that it is read again
    assert store.num_chunks() == (15 if step == "add" else 10)
    assert store.sweep(store.digests().keys()) == 1
    assert store.num_chunks() == 5 * len(store.digests())
    assert store.sweep(store.digests().keys()) == 0


def test_a_writer_stopped_before_it_indexed_the_words(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(store, "_index_words", lambda table: None)
        store.add([], [])
        store._open_or_create(writing.CHUNKS, writing.chunk_schema(8))
    again = LanceStore(store.folder)
    again.sweep(again.digests().keys())
    again.add(rows_of("d"), [Record("d", "x")])
    assert len(again.snapshot().bm25("apple", 5)) == 2


def test_scores_after_many_small_writes_are_those_of_one(store, tmp_path):
    rows = [rows_of(f"d{i}", [f"{TEXTS[i % 5]} {i}", TEXTS[(i * 3) % 5]], seed=i) for i in range(20)]
    for i, some in enumerate(rows):
        store.add(some, [Record(f"d{i}", "x")])
    store.remove(["d3", "d8"])
    store.replace(rows_of("d5", ["red red red"], seed=5), [Record("d5", "y")])
    store.tidy()
    whole = LanceStore(tmp_path / "whole")
    kept = [row for i, some in enumerate(rows) if i not in (3, 5, 8) for row in some]
    kept += rows_of("d5", ["red red red"], seed=5)
    whole.add(kept, [Record(f"d{i}", "x") for i in range(20) if i not in (3, 8)])
    whole.tidy()
    one, other = store.snapshot(), whole.snapshot()
    for query in ("red apple", "sky at night", "17"):
        assert found(one, one.bm25(query, 50)) == found(other, other.bm25(query, 50)) != []

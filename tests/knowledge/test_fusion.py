"""Fusion on lists small enough to do by hand."""

from __future__ import annotations

import pytest

from aurify.knowledge.fusion import fuse_ranks, fuse_scores

DENSE = [("a", 0.9), ("b", 0.8), ("c", 0.1)]
BM25 = [("c", 12.0), ("a", 6.0), ("d", 3.0)]


def test_reciprocal_ranks_by_hand():
    fused = dict(fuse_ranks({"dense": DENSE, "bm25": BM25}))
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 63})
    assert fuse_ranks({"x": [("p", 1), ("q", 1), ("r", 1)], "y": [("p", 1), ("q", 1), ("r", 1)]})[0][1] < 0.0328
    # first and third is more than twice second, by little
    lists = {"x": [("p", 9), ("q", 8), ("r", 7)], "y": [("s", 9), ("q", 8), ("p", 7)]}
    assert [key for key, _ in fuse_ranks(lists)] == ["p", "q", "s", "r"]
    assert dict(fuse_ranks(lists))["p"] == pytest.approx(0.0322665, abs=1e-7)
    assert dict(fuse_ranks(lists))["q"] == pytest.approx(0.0322581, abs=1e-7)


def test_weights_and_k():
    assert fuse_ranks({"dense": DENSE, "bm25": BM25}, {"dense": 1.0, "bm25": 0.0}, k=0)[:3] == [
        ("a", 1.0),
        ("b", 0.5),
        ("c", pytest.approx(1 / 3)),
    ]


def test_scores_are_brought_to_one_scale():
    fused = dict(fuse_scores({"dense": DENSE, "bm25": BM25}, {"dense": 0.5, "bm25": 0.5}))
    assert fused["a"] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert fused["b"] == pytest.approx(0.5 * 1.8 / 1.9)
    assert fused["c"] == pytest.approx(0.5 * 1.1 / 1.9 + 0.5)
    assert fused["d"] == pytest.approx(0.5 * 0.25)


def test_all_weight_on_one_list_keeps_its_order():
    assert [key for key, _ in fuse_scores({"dense": DENSE, "bm25": BM25}, {"dense": 1.0})][:3] == ["a", "b", "c"]
    assert [key for key, _ in fuse_scores({"dense": DENSE, "bm25": BM25}, {"bm25": 1.0})][:3] == ["c", "a", "d"]


def test_ties_go_by_the_better_single_rank_then_by_key():
    assert [key for key, _ in fuse_ranks({"x": [("b", 1), ("c", 1)], "y": [("a", 1), ("d", 1)]})] == [
        "a",
        "b",
        "c",
        "d",
    ]
    equal = {"x": [(7, 1.0), (3, 1.0)], "y": [(1, 2.0), (9, 2.0)]}
    assert [key for key, _ in fuse_scores(equal)] == [1, 7, 3, 9]


def test_nothing_found_is_nothing():
    assert fuse_ranks({}) == fuse_scores({"dense": [], "bm25": []}) == []
    assert fuse_scores({"bm25": [("a", 0.0)]}) == [("a", 0.0)]  # no division by the highest score

"""Rows are forests in depth-first order, and `j <= i < end[j]` is exactly "j is an ancestor of i, or i itself"."""

from __future__ import annotations

import numpy as np
import pytest

from aurify.engine.cpu.gathered import BLOCK, attention_block_sizes
from aurify.engine.packing import pack_row, pack_rows
from aurify.types import Datum


def sequences_of(generator: np.random.Generator, num: int = 12) -> list[list[int]]:
    """Many common prefixes, some duplicates, some sequences that are prefixes of others."""
    return [generator.integers(0, 2, int(generator.integers(1, 9))).tolist() for _ in range(num)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_every_sequence_is_a_path_that_sees_just_itself(seed, share):
    sequences = sequences_of(np.random.default_rng(seed))
    row = pack_row(sequences, range(len(sequences)), share)
    for sequence, path in zip(sequences, row.nodes, strict=True):
        assert row.tokens[path].tolist() == sequence
        assert row.positions[path].tolist() == list(range(len(sequence)))
        assert row.parent[path].tolist() == [-1, *path[:-1]]
        for i in path:
            visible = [j for j in range(len(row.tokens)) if j <= i < row.end[j]]
            assert visible == path[: row.positions[i] + 1].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_common_prefixes_are_stored_once(seed):
    sequences = sequences_of(np.random.default_rng(seed))
    distinct = {tuple(sequence[: k + 1]) for sequence in sequences for k in range(len(sequence))}
    row = pack_row(sequences, range(len(sequences)))
    assert len(row.tokens) == len(distinct)
    assert row.num_shared == sum(map(len, sequences)) - len(distinct)


def datum(tokens: list[int], unit: int = -1) -> Datum:
    return Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1), unit=unit)


@pytest.mark.parametrize("max_tokens", [1, 10, 25, 1000])
def test_pack_keeps_units_together_and_loses_nothing(max_tokens, generator):
    data = [datum(generator.integers(0, 3, 6).tolist(), unit=k // 2) for k in range(20)]
    rows = pack_rows(data, max_tokens)
    assert sorted(k for row in rows for k in row.data) == list(range(20))
    for row in rows:
        units = [data[k].unit for k in row.data]
        assert all(units.count(unit) == 2 for unit in units)
        assert all(units[k] == units[k + 1] for k in range(0, len(units), 2)), (
            "the data of a unit stand next to each other"
        )
        assert len(row.tokens) <= max_tokens or len(set(units)) == 1


def test_rows_are_equal_rather_than_full_with_a_rest(generator):
    data = [datum([k, *generator.integers(0, 100, 9).tolist()]) for k in range(11)]
    assert sorted(len(row.tokens) for row in pack_rows(data, 100)) == [50, 60]


def test_blocks_cover_the_row_and_begin_where_branches_do(generator):
    prompt = generator.integers(0, 100, 60).tolist()
    sequences = [[*prompt, 100 + k, *generator.integers(0, 100, 140).tolist()] for k in range(4)]
    row = pack_row(sequences, range(4))
    sizes = attention_block_sizes(row)
    assert sum(sizes) == len(row.tokens)
    assert all(size <= 2 * BLOCK for size in sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    assert [int(row.positions[start]) for start in starts] == [0, 60, 60, 60]

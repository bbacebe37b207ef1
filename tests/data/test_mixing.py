"""Mixtures: proportions, ends, and that a place alone says which row stands there."""

from __future__ import annotations

from collections import Counter

import pytest

from aurify.data.mixing import Mixture

SIZES = [[10] * 30, [40] * 50, [20] * 5]


def proportions(mixture: Mixture, num: int) -> list[float]:
    """The share of each source in the first rows, by what is weighed."""
    spent = [0] * len(mixture.sizes)
    for index in map(mixture.at, range(num)):
        source = max(k for k, offset in enumerate(mixture.offsets) if offset <= index)
        spent[source] += mixture.sizes[source][index - mixture.offsets[source]] if mixture.by == "tokens" else 1
    return [count / sum(spent) for count in spent]


def test_every_stretch_has_the_proportions():
    mixture = Mixture(SIZES, [5, 3, 2])
    assert proportions(mixture, 10) == [0.5, 0.3, 0.2]
    for begin in range(0, 200, 10):
        drawn = Counter(0 if i < 30 else 1 if i < 80 else 2 for i in map(mixture.at, range(begin, begin + 10)))
        assert (drawn[0], drawn[1], drawn[2]) == (5, 3, 2)


def test_weights_count_tokens():
    by_rows, by_tokens = Mixture(SIZES[:2], [1, 1]), Mixture(SIZES[:2], [1, 1], by="tokens")
    assert proportions(by_rows, 500) == [0.5, 0.5]
    assert proportions(by_tokens, 500) == pytest.approx([0.5, 0.5], abs=0.01)
    drawn = Counter(by_tokens.at(place) < 30 for place in range(500))
    assert drawn[True] == pytest.approx(4 * drawn[False], rel=0.02)  # rows of a quarter of the length


def test_exhaust_ends_with_the_first_source_and_cycle_with_the_last():
    short = Mixture(SIZES, [5, 3, 2])
    assert short.num_rows == pytest.approx(25, abs=3)  # the third has 5 rows and a fifth of all
    seen = Counter(short.at(place) for place in range(short.num_rows))
    assert {index for index in seen if index >= 80} == set(range(80, 85)) and set(seen.values()) == {1}
    long = Mixture(SIZES, [5, 3, 2], stop="cycle")
    seen = Counter(long.at(place) for place in range(long.num_rows))
    assert set(seen) == set(range(85)) and long.num_rows == pytest.approx(50 / 0.3, abs=3)
    assert max(seen[i] for i in range(30, 80)) == 1 and min(seen[i] for i in range(80, 85)) >= 6


def test_the_place_alone_decides():
    straight = Mixture(SIZES, [5, 3, 2], seed=3)
    order = [straight.at(place) for place in range(100)]
    resumed = Mixture(SIZES, [5, 3, 2], seed=3)
    assert [resumed.at(place) for place in range(60, 100)] == order[60:]
    other = Mixture(SIZES, [5, 3, 2], seed=5)
    assert [other.at(place) for place in range(100)] != order
    first, second = ([i for i in order if i >= 80][k : k + 5] for k in (0, 5))
    assert sorted(first) == sorted(second) != second and first != second  # a new order in every pass

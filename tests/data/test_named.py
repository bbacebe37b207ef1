from __future__ import annotations

import pytest

import aurify
from aurify import registry
from aurify.data.sources import check_dataset, load_dataset
from aurify.errors import UserError


@pytest.fixture(autouse=True)
def own_entries(monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", {kind: dict(entries) for kind, entries in registry.ENTRIES.items()})

    @aurify.dataset
    def squares(num: int = 3, shape: str = "rows"):
        shapes = {"rows": [{"n": k * k} for k in range(num)], "text": "rows", "number": 3, "columns": {"n": [1]}}
        return shapes.get(shape, [[1]])

    @aurify.dataset("broken")
    def fails():
        yield {"n": 1}
        raise OSError("the disk is gone")


def test_rows_come_from_the_function_with_their_places():
    rows = load_dataset({"name": "squares", "num": 4})
    assert [dict(row) for row in rows] == [{"n": 0}, {"n": 1}, {"n": 4}, {"n": 9}]
    assert rows[3].location == "dataset 'squares': row 4"
    assert len(load_dataset("squares")) == 3


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("sqaures", "unknown dataset 'sqaures'; did you mean 'squares'"),
        ({"name": "squares", "nmu": 1}, "dataset 'squares' has no option 'nmu'; did you mean 'num'"),
        ({"name": "squares", "num": "many"}, "dataset 'squares': 'num' is 'many'; expected an integer"),
        ({"num": 1}, r"dataset \{'num': 1\}: expected a name"),
    ],
)
def test_mistakes_that_are_seen_before_anything_runs(entry, expected):
    for look in (check_dataset, load_dataset):
        with pytest.raises(UserError, match=expected):
            look(entry)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "squares", "num": 0}, "dataset 'squares' gave no rows"),
        ({"name": "squares", "shape": "text"}, "'squares' gave a str; it must return rows"),
        ({"name": "squares", "shape": "number"}, "'squares' gave a int; it must return rows"),
        ({"name": "squares", "shape": "columns"}, "'squares' gave a dict; it must return rows"),
        ({"name": "squares", "shape": "other"}, "'squares': row 1 is a list; a row is a mapping"),
        ("broken", r"dataset 'broken' raised OSError: the disk is gone \(.*test_named.py:23\)"),
    ],
)
def test_mistakes_of_the_function(entry, expected):
    with pytest.raises(UserError, match=expected):
        load_dataset(entry)

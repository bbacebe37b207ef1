"""Data sets of reasoning-gym by name."""

from __future__ import annotations

import asyncio
import sys
from itertools import islice

import pytest

from aurify import tasks
from aurify.errors import UserError
from aurify.types import Segment, Trajectory


def test_a_data_set_by_name():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    taskset = tasks.make("gym:chain_sum", num_heldout=10, min_terms=2, max_terms=3)
    train = list(islice(taskset.train(0), 20))
    assert train == list(islice(taskset.train(0), 20))
    assert train != list(islice(taskset.train(1), 20))
    assert not {t.id for t in train} & {t.id for t in taskset.heldout}
    assert len(taskset.heldout) == 10
    for text, expected in ((train[0].answer, 1.0), ("no idea", 0.0)):
        trajectory = Trajectory([Segment([1], "prompt")], [*train[0].prompt, {"role": "assistant", "content": text}], 1)
        asyncio.run(taskset.rubric.score(train[0], [trajectory]))
        assert trajectory.reward == pytest.approx(expected, abs=0.02)  # its scorers may give a little for an attempt


def test_mistakes(monkeypatch):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    with pytest.raises(UserError, match="no such data set; did you mean 'chain_sum'"):
        tasks.make("gym:chain_sums")
    with pytest.raises(UserError, match=r"'gym:chain_sum': reasoning-gym refuses the options .*max_terms"):
        tasks.make("gym:chain_sum", max_terms=-1)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'aurify\[gym\]'"):
        tasks.make("gym:chain_sum")

"""Ranges of options are checked when the options are made, by hand and from a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from aurify import config
from aurify.bounds import Checked, Gt, Interval, Le, PositiveInt, Share
from aurify.errors import UserError


@dataclass(frozen=True)
class Options(Checked):
    size: PositiveInt = 1
    clip: Annotated[float, Gt(1), "3 is usual"] | None = None
    drop: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    share: Share = 0.5
    most: Annotated[int, Le(9)] = 0
    free: float = -1.0


@dataclass(frozen=True)
class Narrower(Options):
    size: Annotated[int, Interval(ge=2, le=4)] = 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size: 0 is out of range; it must be at least 1"),
        ({"clip": 1.0}, "clip: 1.0 is out of range; it must be above 1 (3 is usual) or null"),
        ({"drop": 1.0}, "drop: 1.0 is out of range; it must be in [0, 1)"),
        ({"drop": math.nan}, "drop: nan is out of range; it must be in [0, 1)"),
        ({"share": -0.1}, "share: -0.1 is out of range; it must be in [0, 1]"),
        ({"most": 10}, "most: 10 is out of range; it must be at most 9"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(values, words):
    with pytest.raises(UserError) as caught:
        Options(**values)
    assert str(caught.value) == words


def test_values_at_closed_ends_and_none_are_fine():
    assert Options(size=1, clip=None, drop=0.0, share=1.0, most=9, free=-1e9)


def test_a_subclass_may_narrow_a_range():
    assert Narrower(size=4)
    with pytest.raises(UserError, match=r"size: 5 is out of range; it must be in \[2, 4\]"):
        Narrower(size=5)


def test_in_a_recipe_the_whole_key_is_named():
    with pytest.raises(UserError) as caught:
        config.build_options(Options, {"size": 0}, "recipe.yaml: stages.sft.lora")
    assert str(caught.value) == "recipe.yaml: stages.sft.lora.size: 0 is out of range; it must be at least 1"

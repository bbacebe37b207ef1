"""Axes, thinning and the numbers that people read."""

from __future__ import annotations

import math

import pytest

from aurify.report.plot import (
    Series,
    choose_axis_ticks,
    draw_heat_map,
    draw_lines,
    format_axis_tick,
    merge_heat_map_columns,
    smooth_curve,
    thin_curve,
)
from aurify.tracking.figures import (
    format_duration,
    format_heldout_estimate,
    format_short_number,
    is_heldout_share,
    judge_heldout_change,
)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((0, 1), (0.086, 0.914), (-1.4, 0.5), (0.22501, 0.22505), (0, 2e-6), (1e6, 1e6 + 1), (1.0, 20_000.0)),
        *((2e-4, 2e-4), (0, 0), (-3, -3), (-1e9, 1e9), (-1e300, 1e300), (1e-300, 2e-300)),
    ],
)
def test_ticks_enclose_the_values_and_are_told_apart(low, high):
    marks = choose_axis_ticks(low, high)
    assert marks[0] <= low + 1e-9 * abs(low) and marks[-1] >= high - 1e-9 * abs(high) and 2 <= len(marks) <= 7
    labels = [format_axis_tick(mark, marks[1] - marks[0]) for mark in marks]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(("low", "high", "labels"), [(0, 1, "0 0.25 0.5 0.75 1"), (0.06, 2.1, "0 1 2 3")])
def test_ticks_are_round(low, high, labels):
    marks = choose_axis_ticks(low, high)
    assert " ".join(format_axis_tick(mark, marks[1] - marks[0]) for mark in marks) == labels


def test_thinned_keeps_ends_and_extremes_in_order():
    values = [math.sin(k) for k in range(10_000)]
    values[1234], values[5678] = 50.0, -50.0
    kept = thin_curve(values, 100)
    assert len(kept) <= 102 and kept == sorted(set(kept)) and {0, 1234, 5678, 9999} <= set(kept)
    assert thin_curve([1.0, 2.0, 3.0], 100) == [0, 1, 2]


def test_smoothing_neither_shifts_nor_lags():
    assert smooth_curve([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(k) for k in range(201)]
    assert smooth_curve(line)[100] == pytest.approx(100)
    assert smooth_curve(line[::-1]) == pytest.approx(smooth_curve(line)[::-1])


def test_a_heat_map_counts_every_value():
    columns = [(1, [0.0, 0.0, 1.0]), (2, [1.0, 1.0, 1.0])]
    html = draw_heat_map("rewards", columns, num_bins=4)
    assert html.count("<rect") == 8 and "step 1: 2 of 3 from 0 to 0.25" in html and "step 2: 3 of 3" in html
    assert 'class="cell"' in draw_heat_map("equal", [(1, [0.5, 0.5])])  # no spread, no division by zero


def test_neighbouring_columns_join_and_lose_nothing():
    columns = [(step, [float(step)]) for step in range(1, 101)]
    joined = merge_heat_map_columns(columns)
    assert len(joined) <= 48 and joined[-1][0] == 100
    assert [value for _, values in joined for value in values] == [float(step) for step in range(1, 101)]


def test_a_curve_with_one_point_can_be_drawn():
    assert "step 7" in draw_lines("loss", [Series("loss", [7], [0.5], [0.1])])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (1234, "1234"), (65_320, "65.3k"), (1.2e6, "1.2M"), (3e-5, "3e-5"), (-0.0123, "-0.0123")],
)
def test_short_numbers(value, text):
    assert format_short_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_better_is_up_but_for_losses():
    assert judge_heldout_change({"measure": "accuracy", "before": 0.5, "after": 0.75}) == (0.25, "better")
    assert judge_heldout_change({"measure": "held-out loss", "before": 0.5, "after": 0.75}) == (0.25, "worse")
    assert judge_heldout_change({"measure": "accuracy", "before": 0.5, "after": 0.5})[1] == "same"
    assert judge_heldout_change({"measure": "accuracy", "before": 0.5}) == (None, "same")
    assert is_heldout_share({"measure": "accuracy", "before": 0.5}) and not is_heldout_share(
        {"measure": "loss", "before": 0.5}
    )


def test_a_change_below_its_standard_error_is_neither_better_nor_worse():
    result = {"measure": "number_match", "before": 0.5, "after": 0.54}
    sure = {"details_before": {"error": 0.01}, "details_after": {"error": 0.01}}
    unsure = {"details_before": {"error": 0.03}, "details_after": {"error": 0.03}}
    assert judge_heldout_change(result | sure)[1] == "better" and judge_heldout_change(result | unsure)[1] == "same"


def test_an_estimate_is_told_with_its_error_and_how_many():
    assert format_heldout_estimate(0.3125, {}) == "0.312"
    assert format_heldout_estimate(0.3125, {"error": 0.0406, "num": 1064}) == "0.312 ±0.041 (1,064)"
    details = {"error": 0.1, "num": 3, "margin": 0.5, "margin_error": 0.25}
    assert format_heldout_estimate(-19.0, details) == "-19.000 ±0.100 (3), margin +0.500 ±0.250"


def test_the_axis_of_zeros_does_not_go_below_zero():
    assert choose_axis_ticks(0.0, 0.0) == [0, 0.25, 0.5, 0.75, 1]
    assert min(choose_axis_ticks(0.4, 0.4)) >= 0 and min(choose_axis_ticks(-2.0, -2.0)) < -2 < max(
        choose_axis_ticks(-2.0, -2.0)
    )

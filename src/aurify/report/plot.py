"""SVG charts for the report, drawn here so that a page is one file that needs no network. They are complete without
JavaScript; `report.js` reads `data-series` to show the values under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from aurify.report.markup import html_tag, html_text
from aurify.tracking.figures import format_short_number

WIDTH, HEIGHT = 340, 200  # of the view box
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 26
MAX_POINTS = 500  # of a curve on the page; metrics.jsonl has all
NUM_COLOURS = 6
MAX_COLUMNS = 48  # of a heat map
SMOOTH_FROM = 16  # points; fewer are drawn as they are


@dataclass(frozen=True)
class Series:
    """One curve, with as many steps as values, all finite; at least one."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    spread: Sequence[float] | None = None  # half the height of the band around each value

    @property
    def lower(self) -> Sequence[float]:
        return [v - s for v, s in zip(self.values, self.spread, strict=True)] if self.spread else self.values

    @property
    def upper(self) -> Sequence[float]:
        return [v + s for v, s in zip(self.values, self.spread, strict=True)] if self.spread else self.values


@dataclass(frozen=True)
class Frame:
    """Where steps and values lie in the view box."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        first, last = self.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(self, value: float) -> float:
        low, high = self.values
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def path(self, steps: Sequence[float], values: Sequence[float]) -> str:
        return " ".join(f"{self.x(s):.1f},{self.y(v):.1f}" for s, v in zip(steps, values, strict=True))


def choose_axis_ticks(low: float, high: float, num: int = 4) -> list[float]:
    """Round numbers around a range: about `num`, and no two the same."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat line stands in the middle, zeros at the bottom
        pad = abs(high) / 2
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)  # nothing below zero where all is zero
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / num))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= num + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(first, last + 1)]


def format_axis_tick(value: float, step: float) -> str:
    """As many digits as tell one tick from the next."""
    if abs(value) < step / 1e3:
        return "0"
    if step >= 1000 or (step < 1e-4 and abs(value) < 100 * step):
        return format_short_number(value)
    num_digits = max(0, 1 - math.floor(math.log10(step)))
    label = f"{value:.{num_digits}f}"
    return label.rstrip("0").rstrip(".") if "." in label else label


def thin_curve(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Which points of a long curve to draw: the lowest and the highest of each stretch, so that no spike is lost."""
    num = len(values)
    if num <= limit:
        return list(range(num))
    kept = {0, num - 1}
    for begin, end in pairwise(num * k // (limit // 2) for k in range(limit // 2 + 1)):
        stretch = range(begin, end)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def smooth_curve(values: Sequence[float]) -> list[float]:
    """The mean of two exponential averages, one from each end. One average alone lags behind the curve."""
    weight = 1 - 1 / max(2.0, len(values) / 25)
    forth, back = average_curve(values, weight), average_curve(values[::-1], weight)[::-1]
    return [(one + other) / 2 for one, other in zip(forth, back, strict=True)]


def average_curve(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the bias of its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def draw_lines(title: str, series: Sequence[Series], bounds: tuple[float, float] | None = None) -> str:
    """Curves over steps. Where there are many points, a smoothed curve lies over them. `bounds` are the ends of the
    values' axis, unless a value lies outside."""
    low = min(min(one.lower) for one in series)
    high = max(max(one.upper) for one in series)
    if bounds is not None and bounds[0] <= low and high <= bounds[1]:
        low, high = bounds
    marks = choose_axis_ticks(low, high)
    first, last = min(one.steps[0] for one in series), max(one.steps[-1] for one in series)
    frame = Frame((first, last), (marks[0], marks[-1]))
    curves = (draw_curve(frame, one, number) for number, one in enumerate(series))
    cursor = f'<g class="cursor"><line y1="{TOP}" y2="{HEIGHT - BOTTOM}"/><text y="{TOP - 4}"></text></g>'
    return draw_figure(
        title,
        draw_value_axis(frame, marks) + draw_step_axis(frame) + "".join(curves) + cursor,
        draw_legend(series),
        data_reach=json.dumps([first, last, LEFT, WIDTH - RIGHT]),
        data_series=json.dumps([pick_curve_points(one) for one in series]),
    )


def pick_curve_points(series: Series) -> tuple[list[int], list[float]]:
    kept = thin_curve(series.values)
    return [series.steps[k] for k in kept], [float(f"{series.values[k]:.4g}") for k in kept]


def draw_value_axis(frame: Frame, marks: Sequence[float]) -> str:
    step = marks[1] - marks[0]
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(m):.1f}" y2="{frame.y(m):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{frame.y(m) + 3.5:.1f}" text-anchor="end">'
        f"{format_axis_tick(m, step)}</text>"
        for m in marks
    )


def draw_step_axis(frame: Frame) -> str:
    first, last = (int(step) for step in frame.steps)
    if first == last:
        return f'<text class="tick" x="{frame.x(first):.1f}" y="{HEIGHT - 8}" text-anchor="middle">step {first}</text>'
    inner = [int(mark) for mark in choose_axis_ticks(first, last, 5) if mark == int(mark)]
    room = frame.x(last) - 60  # the last label is the longest
    marks = [first, *(mark for mark in inner if frame.x(mark) > LEFT + 18 and frame.x(mark) < room)]
    labels = (
        f'<text class="tick" x="{frame.x(mark):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{mark}</text>'
        for mark in marks
    )
    end = f'<text class="tick" x="{WIDTH - RIGHT + 4}" y="{HEIGHT - 8}" text-anchor="end">step {last}</text>'
    return "".join(labels) + end


def draw_curve(frame: Frame, series: Series, number: int) -> str:
    kept = thin_curve(series.values)
    steps, values = [series.steps[k] for k in kept], [series.values[k] for k in kept]
    smoothed = smooth_curve(series.values) if len(series.values) >= SMOOTH_FROM else None
    body = draw_band(frame, series, smoothed or series.values, kept) if series.spread is not None else ""
    body += f'<polyline class="{"raw" if smoothed else "curve"}" points="{frame.path(steps, values)}"/>'
    if smoothed:
        body += f'<polyline class="curve" points="{frame.path(steps, [smoothed[k] for k in kept])}"/>'
    end = smoothed[-1] if smoothed else values[-1]
    body += f'<circle class="dot" cx="{frame.x(steps[-1]):.1f}" cy="{frame.y(end):.1f}" r="3"/>'
    return html_tag("g", body, class_=f"s{number % NUM_COLOURS}")


def draw_band(frame: Frame, series: Series, middle: Sequence[float], kept: Sequence[int]) -> str:
    assert series.spread is not None
    half = series.spread if middle is series.values else smooth_curve(series.spread)
    upper = [middle[k] + half[k] for k in kept]
    lower = [middle[k] - half[k] for k in kept]
    steps = [series.steps[k] for k in kept]
    return f'<polygon class="band" points="{frame.path([*steps, *steps[::-1]], [*upper, *lower[::-1]])}"/>'


def draw_legend(series: Sequence[Series]) -> str:
    """The last value of each curve; names where there is more than one."""
    names = [f"<i></i>{html_text(one.name)} " if len(series) > 1 else "" for one in series]
    return "".join(
        html_tag("span", name, html_tag("b", format_short_number(one.values[-1])), class_=f"s{number % NUM_COLOURS}")
        for number, (name, one) in enumerate(zip(names, series, strict=True))
    )


def draw_heat_map(title: str, columns: Sequence[tuple[int, Sequence[float]]], num_bins: int = 12) -> str:
    """How values were spread, one column a step (or a few steps): the stronger a cell, the more of them."""
    columns = merge_heat_map_columns(columns)
    low = min(min(values) for _, values in columns)
    high = max(max(values) for _, values in columns)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    frame = Frame((columns[0][0], columns[-1][0]), (low, high))
    width, height = (WIDTH - LEFT - RIGHT) / len(columns), (HEIGHT - TOP - BOTTOM) / num_bins
    cells = ""
    for index, (step, values) in enumerate(columns):
        counts = [0] * num_bins
        for value in values:
            counts[min(num_bins - 1, int((value - low) / (high - low) * num_bins))] += 1
        for level, count in enumerate(counts):
            begin, end = (low + (high - low) * k / num_bins for k in (level, level + 1))
            tip = (
                f"step {step}: {count} of {len(values)} from {format_short_number(begin)} to {format_short_number(end)}"
            )
            cells += html_tag(
                "rect",
                html_tag("title", tip) if count else "",
                class_="cell" if count else "no cell",
                fill_opacity=f"{0.15 + 0.85 * math.sqrt(count / len(values)):.2f}" if count else None,
                x=f"{LEFT + index * width:.1f}",
                y=f"{HEIGHT - BOTTOM - (level + 1) * height:.1f}",
                width=f"{max(1.0, width - 1):.1f}",
                height=f"{height - 1:.1f}",
            )
    labels = "".join(
        f'<text class="tick" x="{LEFT - 7}" y="{frame.y(value) + drop}" text-anchor="end">'
        f"{format_short_number(value)}</text>"
        for value, drop in ((low, 0), ((low + high) / 2, 4), (high, 8))
    )
    num = sum(len(values) for _, values in columns)
    caption = html_tag("span", f"{format_short_number(num)} completions")
    return draw_figure(title, labels + cells + draw_step_axis(frame), caption)


def merge_heat_map_columns(columns: Sequence[tuple[int, Sequence[float]]]) -> list[tuple[int, list[float]]]:
    """Neighbours together where there are more columns than the chart has room for; a column keeps its last step."""
    size = math.ceil(len(columns) / MAX_COLUMNS)
    parts = [columns[k : k + size] for k in range(0, len(columns), size)]
    return [(part[-1][0], [value for _, values in part for value in values]) for part in parts]


def draw_sparkline(values: Sequence[float], width: int = 120, height: int = 22) -> str:
    low, high = min(values), max(values)
    points = " ".join(
        f"{2 + (width - 4) * k / max(1, len(values) - 1):.1f},"
        f"{height / 2 if high <= low else height - 3 - (height - 6) * (values[k] - low) / (high - low):.1f}"
        for k in thin_curve(values, 120)
    )
    return html_tag(
        "svg", f'<polyline class="curve" points="{points}"/>', class_="spark", viewBox=f"0 0 {width} {height}"
    )


def draw_dumbbell(before: float, after: float, verdict: str, width: int = 180) -> str:
    """A share before and after on a scale from 0 to 1."""
    x, y = (8 + (width - 16) * value for value in (before, after))
    return html_tag(
        "svg",
        f'<line class="track" x1="8" x2="{width - 8}" y1="10" y2="10"/>',
        f'<line class="way" x1="{x:.1f}" x2="{y:.1f}" y1="10" y2="10"/>',
        f'<circle class="from" cx="{x:.1f}" cy="10" r="4"/><circle class="to" cx="{y:.1f}" cy="10" r="5.5"/>',
        class_=f"dumbbell {verdict}",
        viewBox=f"0 0 {width} 20",
        role="img",
        aria_label=f"from {before:.3f} to {after:.3f}",
    )


def draw_figure(title: str, body: str, caption: str, **attributes: object) -> str:
    head = html_tag(
        "figcaption", html_tag("span", html_text(title), class_="title"), html_tag("span", caption, class_="values")
    )
    picture = html_tag("svg", body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return html_tag("figure", head, picture, **attributes)

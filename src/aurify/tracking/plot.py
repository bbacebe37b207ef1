"""Small SVG charts, drawn here so that a report is one file that needs neither network nor JavaScript."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 26


def ticks(low: float, high: float, num: int = 4) -> list[float]:
    """Round numbers that cover a range."""
    span = high - low or 1.0
    unit = 10 ** math.floor(math.log10(span / num))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= num)
    return [step * k for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def short(value: float) -> str:
    return f"{value:.0e}" if value and (abs(value) < 1e-3 or abs(value) >= 1e5) else f"{value:.4g}"


def line_chart(title: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """One curve; a smoothed one lies over the raw points where there are many."""
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - first) / ((last - first) or 1))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((value - low) / ((high - low) or 1))

    def path(points: Sequence[float]) -> str:
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, points, strict=True))

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(m):.1f}" y2="{y(m):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(m) + 3:.1f}" text-anchor="end">{short(m)}</text>'
        for m in marks
    )
    labels = f'<text class="tick" x="{LEFT}" y="{HEIGHT - 8}">{first:g}</text>' + (
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step {last:g}</text>'
    )
    smooth = smoothed(values) if len(values) > 12 else None
    curve = f'<polyline class="{"raw" if smooth else "curve"}" points="{path(values)}"/>'
    if smooth:
        curve += f'<polyline class="curve" points="{path(smooth)}"/>'
    end = f'<circle class="dot" cx="{x(steps[-1]):.1f}" cy="{y((smooth or values)[-1]):.1f}" r="3"/>'
    return chart(title, short(values[-1]), grid + labels + curve + end)


def smoothed(values: Sequence[float], weight: float = 0.75) -> list[float]:
    """Exponential moving average without the bias of its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def histograms(title: str, columns: Sequence[tuple[int, Sequence[float]]], num_bins: int = 10) -> str:
    """How rewards were spread, one column a step: the darker a cell, the more completions earned that much."""
    every = [value for _, values in columns for value in values]
    low, high = min(every), max(every)
    span = (high - low) or 1.0
    width = (WIDTH - LEFT - RIGHT) / len(columns)
    height = (HEIGHT - TOP - BOTTOM) / num_bins
    cells = []
    for k, (step, values) in enumerate(columns):
        counts = [0] * num_bins
        for value in values:
            counts[min(num_bins - 1, int((value - low) / span * num_bins))] += 1
        for b, count in enumerate(counts):
            if count:
                top = HEIGHT - BOTTOM - (b + 1) * height
                cells.append(
                    f'<rect class="cell" x="{LEFT + k * width:.1f}" y="{top:.1f}" width="{max(1.0, width - 1):.1f}" '
                    f'height="{height - 1:.1f}" opacity="{0.12 + 0.88 * count / len(values):.2f}">'
                    f"<title>step {step}: {count} of {len(values)}</title></rect>"
                )
    labels = (
        f'<text class="tick" x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">{short(low)}</text>'
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{short(high)}</text>'
        f'<text class="tick" x="{LEFT}" y="{HEIGHT - 8}">{columns[0][0]}</text>'
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step {columns[-1][0]}</text>'
    )
    return chart(title, "", labels + "".join(cells))


def chart(title: str, value: str, body: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}<b>{escape(value)}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )

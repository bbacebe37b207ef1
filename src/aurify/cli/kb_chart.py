"""The picture of `aurify kb eval`: recall over the number of places looked at, and what each way to search takes. One
SVG file that a page or a README can show as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.report.markup import tag, text
from aurify.report.plot import HEIGHT, LEFT, WIDTH, Frame, choose_ticks, draw_value_axis, format_tick

if TYPE_CHECKING:
    from aurify.evaluation.comparison import Measured

COLOURS = ("#b07a1b", "#2f6f9f", "#8a5a9e", "#2c7a52", "#b5443c", "#6b6a64")
STYLE = """
svg { font: 11px system-ui, sans-serif; background: #fff }
text { fill: #5f5a52 } .title { font-weight: 600; fill: #23211d }
.grid { stroke: #e7e2d8 } .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
"""
GAP, ROW = 24, 26


def chart(measured: Sequence[Measured]) -> str:
    left, right = recall_panel(measured), latency_panel(measured)
    height = HEIGHT + 18 * len(measured) + 8
    body = tag("style", STYLE) + left + tag("g", right, transform=f"translate({WIDTH + GAP} 0)")
    box = f"0 0 {2 * WIDTH + GAP} {height}"
    label = "recall and latency"
    return tag("svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=label)


def recall_panel(measured: Sequence[Measured]) -> str:
    """From the lowest recall@1 up: over the whole scale from 0 good searches could not be told apart."""
    curves = [one.quality.recalls for one in measured]
    marks = choose_ticks(min(map(min, curves)), max(map(max, curves)))
    depth = len(curves[0])
    frame = Frame((1, depth), (marks[0], marks[-1]))
    lines = "".join(
        tag("polyline", points=frame.path(range(1, depth + 1), curve), class_="curve", stroke=colour(number))
        for number, curve in enumerate(curves)
    )
    labels = "".join(
        tag("text", str(k), x=f"{frame.x(k):.1f}", y=HEIGHT - 10, text_anchor="middle")
        for k in (1, *range(5, depth + 1, 5))
    )
    return heading("recall@k") + draw_value_axis(frame, marks) + labels + lines + legend(measured)


def legend(measured: Sequence[Measured]) -> str:
    rows = []
    for number, one in enumerate(measured):
        y = HEIGHT + 8 + 18 * number
        swatch = tag("rect", x=LEFT, y=y - 8, width=10, height=10, rx=3, fill=colour(number))
        facts = f"{one.name}: MRR@10 {one.quality.mrr:.3f} ± {one.quality.error:.3f}"
        rows.append(swatch + tag("text", text(facts), x=LEFT + 16, y=y + 1))
    return "".join(rows)


def latency_panel(measured: Sequence[Measured]) -> str:
    """A bar to the median, a thin one on to the 95th percentile."""
    begin, end = 90, WIDTH - 16
    marks = choose_ticks(0, max(one.total.at(0.95) for one in measured))
    unit = (end - begin) / marks[-1]
    bottom = 26 + ROW * len(measured)
    grid = "".join(
        tag("line", class_="grid", x1=f"{begin + mark * unit:.1f}", x2=f"{begin + mark * unit:.1f}", y1=22, y2=bottom)
        + tag("text", format_tick(mark, marks[1]), x=f"{begin + mark * unit:.1f}", y=bottom + 14, text_anchor="middle")
        for mark in marks
    )
    bars = []
    for number, one in enumerate(measured):
        y, middle, late = 28 + ROW * number, one.total.at(0.5), one.total.at(0.95)
        bars += [
            tag("text", text(one.name), x=begin - 8, y=y + 12, text_anchor="end"),
            tag("rect", x=begin, y=y + 6, width=f"{late * unit:.1f}", height=4, fill=colour(number), opacity=0.4),
            tag("rect", x=begin, y=y, width=f"{middle * unit:.1f}", height=16, rx=2, fill=colour(number)),
        ]
    return heading("milliseconds of a query: median, and 95th percentile") + grid + "".join(bars)


def heading(words: str) -> str:
    return tag("text", words, class_="title", x=8, y=12)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]

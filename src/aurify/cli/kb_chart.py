"""The picture of `aurify kb eval`: recall over the number of hits looked at, and how long each way to search takes. One
SVG file that a page or a README can show as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aurify.report.markup import html_tag, html_text
from aurify.report.plot import HEIGHT, LEFT, WIDTH, Frame, choose_axis_ticks, draw_value_axis, format_axis_tick

if TYPE_CHECKING:
    from aurify.evaluation.comparison import Measured

COLOURS = ("#b07a1b", "#2f6f9f", "#8a5a9e", "#2c7a52", "#b5443c", "#6b6a64")
STYLE = """
svg { font: 11px system-ui, sans-serif; background: #fff }
text { fill: #5f5a52 } .title { font-weight: 600; fill: #23211d }
.grid { stroke: #e7e2d8 } .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
"""
GAP, ROW = 24, 34  # between the panels; of a bar with its name above


def draw_kb_chart(measured: Sequence[Measured]) -> str:
    coloured = [(one, COLOURS[number % len(COLOURS)]) for number, one in enumerate(measured)]
    right = html_tag("g", draw_latency(coloured), transform=f"translate({WIDTH + GAP} 0)")
    box = f"0 0 {2 * WIDTH + GAP} {max(HEIGHT + 18 * len(measured) + 8, 48 + ROW * len(measured))}"
    body = html_tag("style", STYLE) + draw_recall(coloured) + right
    label = "recall and latency"
    return html_tag("svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=label)


def draw_recall(measured: Sequence[tuple[Measured, str]]) -> str:
    """From the lowest recall@1 up: on the whole scale from 0, good searches could not be told apart."""
    recalls = [one.quality.recalls for one, _ in measured]
    marks = choose_axis_ticks(min(map(min, recalls)), max(map(max, recalls)))
    depth = len(recalls[0])
    frame = Frame((1, depth), (marks[0], marks[-1]))
    parts = [html_tag("text", "recall@k", class_="title", x=8, y=12), draw_value_axis(frame, marks)]
    for k in (1, *range(5, depth + 1, 5)):
        parts.append(html_tag("text", str(k), x=f"{frame.x(k):.1f}", y=HEIGHT - 10, text_anchor="middle"))
    for number, (one, colour) in enumerate(measured):
        y = HEIGHT + 8 + 18 * number
        facts = f"{one.name}: MRR@10 {one.quality.mrr:.3f} ± {one.quality.error:.3f}"
        points = frame.path(range(1, depth + 1), one.quality.recalls)
        parts += [
            html_tag("polyline", points=points, class_="curve", stroke=colour),
            html_tag("rect", x=LEFT, y=y - 8, width=10, height=10, rx=3, fill=colour),
            html_tag("text", html_text(facts), x=LEFT + 16, y=y + 1),
        ]
    return "".join(parts)


def draw_latency(measured: Sequence[tuple[Measured, str]]) -> str:
    """A bar up to the median, and a thin one up to the 95th percentile."""
    marks = choose_axis_ticks(0, max(one.total.at(0.95) for one, _ in measured))
    frame = Frame((0, marks[-1]), (0, 1))
    bottom = 26 + ROW * len(measured)
    title = "milliseconds of a query: median, and 95th percentile"
    parts = [html_tag("text", title, class_="title", x=8, y=12)]
    for mark in marks:
        x = f"{frame.x(mark):.1f}"
        parts.append(html_tag("line", class_="grid", x1=x, x2=x, y1=22, y2=bottom))
        parts.append(html_tag("text", format_axis_tick(mark, marks[1]), x=x, y=bottom + 14, text_anchor="middle"))
    for number, (one, colour) in enumerate(measured):
        y, (middle, late) = 28 + ROW * number, (frame.x(one.total.at(share)) - LEFT for share in (0.5, 0.95))
        parts += [
            html_tag("text", html_text(one.name), x=LEFT + 2, y=y + 10),
            html_tag("rect", x=LEFT, y=y + 19, width=f"{late:.1f}", height=4, fill=colour, opacity=0.4),
            html_tag("rect", x=LEFT, y=y + 14, width=f"{middle:.1f}", height=14, rx=2, fill=colour),
        ]
    return "".join(parts)

"""A conversation for the report: who wrote each part, and how the policy was trained on it. Every mark is a line as
well as a colour, and says in its title what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from aurify.report.markup import html_tag, html_text
from aurify.tracking.samples import Block, describe_sample_advantages
from aurify.types import Span

MAX_TEXT = 6000  # characters of a turn on the page; samples.jsonl has all
LEVELS = 4  # shades of an advantage
WRITERS = {"policy": "the policy", "guidance": "a guide"}


@dataclass(frozen=True)
class Run:
    """Neighbouring spans that look alike."""

    text: str
    author: str = "environment"
    level: int = 0  # of the advantage, from -LEVELS to LEVELS
    title: str = ""


def explain_transcript_marks(blocks: Sequence[Block], largest: float) -> str:
    """What the marks on the page mean, as far as there are any. largest: the size of the largest advantage."""
    authors = {span.author for block in blocks for span in block.spans}
    marks = {
        Run(f"+{largest:.3g}", "policy", LEVELS): "advantage above 0: made likelier",
        Run(f"-{largest:.3g}", "policy", -LEVELS): "below 0: made less likely",
        Run("guide", "guidance"): "written by a guide",
        Run("<template>", "template"): "written by the chat template",
    }
    shown = [mark for mark in marks if (largest if mark.level else mark.author in authors)]
    items = (html_tag("span", build_span_markup(mark), " ", html_text(marks[mark])) for mark in shown)
    return html_tag("p", *items, class_="legend dim") if shown else ""


def build_transcript_block(block: Block, largest: float) -> str:
    runs = shorten_transcript(list(group_transcript_spans(block.spans, largest)), MAX_TEXT)
    head = html_tag("small", html_text(" · ".join([block.role, *block.facts])))
    words = html_tag("div", *map(build_span_markup, runs), dir="auto")
    return html_tag("div", head, words, class_="turn said" if block.said else "turn asked")


def group_transcript_spans(spans: Sequence[Span], largest: float) -> Iterator[Run]:
    def find_level(span: Span) -> int:
        size = math.ceil(LEVELS * abs(span.advantage or 0.0) / largest) if largest else 0
        return size if (span.advantage or 0.0) > 0 else -size

    for (author, level), run in groupby(spans, key=lambda span: (span.author, find_level(span))):
        alike = list(run)
        title = ", ".join(filter(None, (WRITERS.get(author), describe_sample_advantages(alike))))
        yield Run("".join(span.text for span in alike), author, level, title)


def build_span_markup(run: Run) -> str:
    """A rise has a straight line below it and a fall a wavy one, thicker where it is larger."""
    if run.author == "environment" or not run.text.strip():
        return html_text(run.text)
    if run.author == "template":
        return html_tag("i", html_text(" ".join(run.text.split())), title="the chat template")
    kinds = ["guide"] * (run.author == "guidance") + ["up"] * (run.level > 0) + ["down"] * (run.level < 0)
    style = f"--level:{abs(run.level)}" if run.level else None
    return html_tag("span", html_text(run.text), class_=" ".join(kinds) or None, style=style, title=run.title or None)


def shorten_transcript(runs: Sequence[Run], limit: int) -> list[Run]:
    """Without the middle of a text that is too long for the page."""
    total = sum(len(run.text) for run in runs)
    if total <= limit:
        return list(runs)
    head, tail = limit * 2 // 3, total - limit // 3
    kept, begin = [], 0
    for run in runs:
        end = begin + len(run.text)
        if begin < head:
            kept.append(replace(run, text=run.text[: head - begin]))
        if begin <= head < end:
            kept.append(Run(f"\n[… {tail - head:,} characters left out …]\n"))
        if end > tail:
            kept.append(replace(run, text=run.text[max(0, tail - begin) :]))
        begin = end
    return kept


def clip_transcript(words: str, limit: int = MAX_TEXT) -> str:
    return "".join(run.text for run in shorten_transcript([Run(words)], limit))

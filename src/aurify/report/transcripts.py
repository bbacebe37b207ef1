"""What the model wrote, for the report: the best and the worst answers of steps from the first to the last."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aurify.report.markup import html_tag, html_text
from aurify.tracking.figures import format_short_number

Sample = Mapping[str, Any]

MAX_STEPS = 4
MAX_TEXT = 6000  # characters of a message on the page; samples.jsonl has all


@dataclass
class Samples:
    """What a report needs of a stage's samples, gathered in one pass over a file that may be large."""

    rewards: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by step
    best: dict[int, Sample] = field(default_factory=dict)
    worst: dict[int, Sample] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        step, reward = sample["step"], sample["reward"]
        if reward is None or sample.get("source", "policy") != "policy":  # a guide's answers are not the model's
            return
        self.rewards[step].append(reward)
        if step not in self.best or reward > self.best[step]["reward"]:
            self.best[step] = sample
        if step not in self.worst or reward < self.worst[step]["reward"]:
            self.worst[step] = sample

    @property
    def columns(self) -> list[tuple[int, list[float]]]:
        return sorted(self.rewards.items())

    def steps(self) -> list[int]:
        """The first, the last, and some between."""
        known = sorted(self.rewards)
        num = min(MAX_STEPS, len(known))
        return [known[round(k * (len(known) - 1) / max(1, num - 1))] for k in range(num)]


def gather_transcripts(rows: Iterable[Sample]) -> Samples:
    samples = Samples()
    for row in rows:
        samples.add(row)
    return samples


def draw_transcripts(samples: Samples) -> str:
    every = [reward for rewards in samples.rewards.values() for reward in rewards]
    low, high = min(every), max(every)
    html = ""
    for step in samples.steps():
        best, worst = samples.best[step], samples.worst[step]
        num = len(samples.rewards[step])
        cards = [draw_card(best, f"best of {num}", low, high)]
        if worst["reward"] < best["reward"]:
            cards.append(draw_card(worst, f"worst of {num}", low, high))
        html += html_tag("h4", f"Step {step}") + html_tag("div", *cards, class_="pair")
    return html


def draw_card(sample: Sample, which: str, low: float, high: float) -> str:
    heat = 100 * (sample["reward"] - low) / (high - low) if high > low else 100
    facts = [
        f"{name} {'-' if value is None else format_short_number(value)}" for name, value in sample["rewards"].items()
    ]
    if sample.get("answer"):
        facts.append(f"expected: {clip_transcript(str(sample['answer']), 80)}")
    facts.append(f"{sample['tokens']} tokens")
    header = html_tag(
        "header",
        draw_pill(f"{sample['reward']:+.2f}", heat),
        html_tag("span", which, class_="dim"),
        html_tag("span", draw_cut_reason(sample), class_="cut") if sample["truncated"] else "",
        html_tag("span", html_text(" · ".join(facts)), class_="dim facts"),
    )
    return html_tag("article", header, html_tag("div", *map(draw_turn, sample["messages"]), class_="turns"))


def draw_cut_reason(sample: Sample) -> str:
    """Why a trajectory ended before it was done; older runs do not say."""
    reasons = {
        "turn_limit": "turn limit",
        "context": "context full",
        "time_limit": "time limit",
        "tool_errors": "too many failed calls",
    }
    return reasons.get(str(sample.get("outcome")), "cut off")


def draw_pill(label: str, heat: float) -> str:
    """`heat` from 0, bad, to 100, good."""
    return html_tag("b", html_text(label), class_="pill", style=f"--heat:{heat:.0f}")


def draw_turn(message: Mapping[str, Any]) -> str:
    role, content = str(message.get("role", "")), message.get("content")
    said = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    if message.get("tool_calls"):
        said += "\n" + json.dumps(message["tool_calls"], ensure_ascii=False)
    words = html_tag("div", html_text(clip_transcript(said.strip())), dir="auto")
    return html_tag(
        "div", html_tag("small", html_text(role)), words, class_="turn said" if role == "assistant" else "turn asked"
    )


def draw_pairs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Preference pairs: a question, and the better answer beside the worse one."""
    html = ""
    for row in rows:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        cards = (
            html_tag(
                "article",
                draw_pill(which, heat),
                html_tag("div", html_text(clip_transcript(row[which])), class_="turn said", dir="auto"),
            )
            for which, heat in (("chosen", 100), ("rejected", 0))
        )
        html += html_tag("p", html_text(clip_transcript(prompt, 600)), class_="question", dir="auto") + html_tag(
            "div", *cards, class_="pair"
        )
    return html


def clip_transcript(words: str, limit: int = MAX_TEXT) -> str:
    if len(words) <= limit:
        return words
    head, tail = limit * 2 // 3, limit // 3
    return f"{words[:head]}\n[… {len(words) - head - tail:,} characters left out …]\n{words[-tail:]}"

"""What the model wrote, for the report: the best and the worst answers of steps from the first to the last."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aurify.report.markup import tag, text
from aurify.tracking.figures import format_short

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


def gather_samples(rows: Iterable[Sample]) -> Samples:
    samples = Samples()
    for row in rows:
        samples.add(row)
    return samples


def build_transcripts(samples: Samples) -> str:
    every = [reward for rewards in samples.rewards.values() for reward in rewards]
    low, high = min(every), max(every)
    html = ""
    for step in samples.steps():
        best, worst = samples.best[step], samples.worst[step]
        num = len(samples.rewards[step])
        cards = [build_card(best, f"best of {num}", low, high)]
        if worst["reward"] < best["reward"]:
            cards.append(build_card(worst, f"worst of {num}", low, high))
        html += tag("h4", f"Step {step}") + tag("div", *cards, class_="pair")
    return html


def build_card(sample: Sample, which: str, low: float, high: float) -> str:
    heat = 100 * (sample["reward"] - low) / (high - low) if high > low else 100
    facts = [f"{name} {'-' if value is None else format_short(value)}" for name, value in sample["rewards"].items()]
    if sample.get("answer"):
        facts.append(f"expected: {clip(str(sample['answer']), 80)}")
    facts.append(f"{sample['tokens']} tokens")
    header = tag(
        "header",
        build_pill(f"{sample['reward']:+.2f}", heat),
        tag("span", which, class_="dim"),
        tag("span", say_cut(sample), class_="cut") if sample["truncated"] else "",
        tag("span", text(" · ".join(facts)), class_="dim facts"),
    )
    return tag("article", header, tag("div", *map(build_turn, sample["messages"]), class_="turns"))


def say_cut(sample: Sample) -> str:
    """Why a trajectory ended before it was done; older runs do not say."""
    reasons = {
        "turn_limit": "turn limit",
        "context": "context full",
        "time_limit": "time limit",
        "tool_errors": "too many failed calls",
    }
    return reasons.get(str(sample.get("outcome")), "cut off")


def build_pill(label: str, heat: float) -> str:
    """`heat` from 0, bad, to 100, good."""
    return tag("b", text(label), class_="pill", style=f"--heat:{heat:.0f}")


def build_turn(message: Mapping[str, Any]) -> str:
    role, content = str(message.get("role", "")), message.get("content")
    said = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    if message.get("tool_calls"):
        said += "\n" + json.dumps(message["tool_calls"], ensure_ascii=False)
    words = tag("div", text(clip(said.strip())), dir="auto")
    return tag("div", tag("small", text(role)), words, class_="turn said" if role == "assistant" else "turn asked")


def build_pairs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Preference pairs: a question, and the better answer beside the worse one."""
    html = ""
    for row in rows:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        cards = (
            tag("article", build_pill(which, heat), tag("div", text(clip(row[which])), class_="turn said", dir="auto"))
            for which, heat in (("chosen", 100), ("rejected", 0))
        )
        html += tag("p", text(clip(prompt, 600)), class_="question", dir="auto") + tag("div", *cards, class_="pair")
    return html


def clip(words: str, limit: int = MAX_TEXT) -> str:
    if len(words) <= limit:
        return words
    head, tail = limit * 2 // 3, limit // 3
    return f"{words[:head]}\n[… {len(words) - head - tail:,} characters left out …]\n{words[-tail:]}"

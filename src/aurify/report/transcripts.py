"""What the model wrote, for the report: the best and the worst answers of steps from the first to the last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aurify.report.conversation import build_transcript_block, clip_transcript, explain_transcript_marks
from aurify.report.markup import html_tag, html_text
from aurify.tracking.figures import format_short_number
from aurify.tracking.samples import Block, Sample, describe_sample_outcome, find_largest_advantage, split_sample_blocks

MAX_STEPS = 4


@dataclass
class Samples:
    """What a report needs of a stage's samples, gathered in one pass over a file that may be large."""

    rewards: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by step
    best: dict[int, Sample] = field(default_factory=dict)
    worst: dict[int, Sample] = field(default_factory=dict)
    guided: dict[int, Sample] = field(default_factory=dict)  # the first that a guide began, or wrote

    def add(self, sample: Sample) -> None:
        step, reward, source = sample["step"], sample["reward"], sample.get("source", "policy")
        if source == "guidance":
            self.guided.setdefault(step, sample)
        if reward is None or source != "policy":  # a guide's answers are not the model's
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
    shown = {step: pick_shown_transcripts(samples, step) for step in samples.steps()}
    cards = [(sample, split_sample_blocks(sample)) for row in shown.values() for _, sample in row]
    blocks = [block for _, part in cards for block in part]
    largest, rest = find_largest_advantage(blocks), iter(cards)
    html = explain_transcript_marks(blocks, largest)
    for step, row in shown.items():
        made = (draw_card(*next(rest), which, (min(every), max(every)), largest) for which, _ in row)
        html += html_tag("h4", f"Step {step}") + html_tag("div", *made, class_="pair")
    return html


def pick_shown_transcripts(samples: Samples, step: int) -> list[tuple[str, Sample]]:
    best, worst, num = samples.best[step], samples.worst[step], len(samples.rewards[step])
    shown = [(f"best of {num}", best)] + [(f"worst of {num}", worst)] * (worst["reward"] < best["reward"])
    return shown + ([("with a guide", samples.guided[step])] if step in samples.guided else [])


def draw_card(sample: Sample, blocks: Sequence[Block], which: str, ends: tuple[float, float], largest: float) -> str:
    """ends: the lowest and the highest reward. largest: the size of the largest advantage on the page."""
    reward, (low, high), turns, tools = sample["reward"], ends, sample.get("turns") or (), sample.get("tools") or ()
    facts = [
        f"{name} {'-' if value is None else format_short_number(value)}" for name, value in sample["rewards"].items()
    ]
    if sample.get("answer"):
        facts.append(f"expected: {clip_transcript(str(sample['answer']), 80)}")
    facts.append(f"{sample['tokens']} tokens")
    facts += [f"{len(turns)} turns"] * (len(turns) > 1) + [f"tools: {clip_transcript(', '.join(tools), 200)}"] * bool(
        tools
    )
    header = html_tag(
        "header",
        draw_pill("no reward" if reward is None else f"{reward:+.2f}", measure_token_heat(reward, low, high)),
        html_tag("span", which, class_="dim"),
        build_transcript_outcome(sample) if sample["truncated"] or len(turns) > 1 or tools else "",
        html_tag("span", html_text(" · ".join(facts)), class_="dim facts"),
    )
    return html_tag(
        "article",
        header,
        html_tag("div", *(build_transcript_block(block, largest) for block in blocks), class_="turns"),
    )


def measure_token_heat(reward: float | None, low: float, high: float) -> float:
    """From 0, bad, to 100, good. A guide's reward may be outside of the policy's."""
    if reward is None:
        return 0
    return max(0.0, min(100.0, 100 * (reward - low) / (high - low))) if high > low else 100


def build_transcript_outcome(sample: Sample) -> str:
    return html_tag(
        "span", html_text(describe_sample_outcome(sample)), class_="cut" if sample["truncated"] else "badge"
    )


def draw_pill(label: str, heat: float) -> str:
    """`heat` from 0, bad, to 100, good."""
    return html_tag("b", html_text(label), class_="pill", style=f"--heat:{heat:.0f}")


def draw_preference_pairs(rows: Sequence[Mapping[str, Any]]) -> str:
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

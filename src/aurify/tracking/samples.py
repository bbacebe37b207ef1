"""A trajectory as a line of samples.jsonl, and such a line as the blocks of a conversation, for console and report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from aurify.tracking.figures import format_short_number
from aurify.types import Group, Message, Span, Trajectory, Turn

Sample = Mapping[str, Any]
WRITERS = ("policy", "guidance")
OUTCOMES = {
    "done": "done",
    "turn_limit": "turn limit",
    "context": "context full",
    "time_limit": "time limit",
    "tool_errors": "too many failed calls",
}


def record_sample_turn(turn: Turn) -> dict[str, Any]:
    """As with metrics, what differs between two runs of one recipe is named `time/`."""
    return {
        "tokens": turn.num_tokens,
        "environment_tokens": turn.environment_tokens,
        "rewards": dict(turn.rewards),
        "time/sample": round(turn.seconds, 3),
        "time/environment": round(turn.environment_seconds, 3),
    }


def record_sample(group: Group, trajectory: Trajectory) -> dict[str, Any]:
    """spans: what follows the prompt, as [text, who wrote it, advantage]."""
    tools = [str(tool.get("function", tool).get("name", "")) for tool in trajectory.tools]
    return {
        "task": group.task.id,
        "answer": group.task.answer,
        "messages": trajectory.messages,
        "num_prompt_messages": trajectory.num_prompt_messages,
        "reward": trajectory.reward,
        "rewards": trajectory.rewards,
        "tokens": trajectory.num_policy_tokens,
        "truncated": trajectory.truncated,
        "outcome": trajectory.outcome,
        "turns": [record_sample_turn(turn) for turn in trajectory.turns],
        "source": trajectory.source,
        **({"tools": tools} if tools else {}),
        **({"spans": [list(span) for span in trajectory.spans]} if trajectory.spans else {}),
        **({"extra": trajectory.extra} if trajectory.extra else {}),
    }


# ---------------------------------------------------------------------- what people see of it


@dataclass(frozen=True)
class Block:
    """What one side of a conversation said at one go."""

    role: str
    spans: Sequence[Span]
    facts: Sequence[str] = ()  # advantage, rewards, tokens
    said: bool = False  # by the policy, or a guide

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def describe_sample_outcome(sample: Sample) -> str:
    """Why a trajectory ended; older runs do not say."""
    outcome = str(sample.get("outcome", "cut off" if sample["truncated"] else "done"))
    return OUTCOMES.get(outcome, "cut off")


def split_sample_blocks(sample: Sample) -> list[Block]:
    """The whole conversation. Lines of older runs have no spans: then it is that of the messages."""
    messages = sample["messages"]
    if "spans" not in sample:
        return [Block(name_sample_role(m), [write_sample_span(m)], said=is_sampled(m)) for m in messages]
    num = sample["num_prompt_messages"]
    blocks = [Block(name_sample_role(m), [write_sample_span(m)]) for m in messages[:num]]
    answers, turns, turn, said = list_sample_answers(messages[num:]), sample["turns"], -1, False
    for said, run in groupby((Span(*span) for span in sample["spans"]), key=lambda span: span.author in WRITERS):
        parts, turn = list(run), turn + said
        known = turns[turn] if 0 <= turn < len(turns) else {}  # replayed ones have forgotten their turns
        if said:
            guide = "" if any(span.author == "policy" for span in parts) else "guide"
            blocks.append(Block(guide or "assistant", parts, describe_sample_turn(parts, known), said=True))
        else:
            facts = [f"{known['environment_tokens']} tokens"] if known.get("environment_tokens") else []
            roles = dict.fromkeys(map(name_sample_role, answers[turn])) if 0 <= turn < len(answers) else {}
            blocks.append(Block(", ".join(roles) or "template", parts, facts))
    if said and turn < len(answers):
        blocks += [Block(name_sample_role(m), [write_sample_span(m)], ["not read"]) for m in answers[turn]]
    return blocks


def list_sample_answers(messages: Sequence[Message]) -> list[list[Message]]:
    """What was said to each of the policy's messages."""
    answers: list[list[Message]] = []
    for message in messages:
        if is_sampled(message):
            answers.append([])
        elif answers:
            answers[-1].append(message)
    return answers


def is_sampled(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant" and bool(message.get("weight", 1.0))


def name_sample_role(message: Mapping[str, Any]) -> str:
    put_in = message.get("role") == "assistant" and not is_sampled(message)
    return "put in" if put_in and message.get("goes_on") else str(message.get("role", ""))


def write_sample_span(message: Mapping[str, Any]) -> Span:
    """A message whose tokens are not known, with the calls that it holds beside its text."""
    content, calls = message.get("content"), message.get("tool_calls")
    said = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    said += f"\n{json.dumps(calls, ensure_ascii=False)}" if calls else ""
    return Span(said.strip(), "policy" if is_sampled(message) else "environment")


def describe_sample_turn(spans: Sequence[Span], turn: Mapping[str, Any]) -> list[str]:
    """Advantage, rewards of the turn alone, tokens."""
    facts = [describe_sample_advantages(spans) or "not trained"]
    rewards = turn.get("rewards", {}).items()
    facts += [f"{name} {format_short_number(value)}" for name, value in rewards if value is not None]
    return facts + ([f"{turn['tokens']} tokens"] if turn.get("tokens") else [])


def describe_sample_advantages(spans: Sequence[Span]) -> str:
    """From the lowest to the highest; "" where nothing was trained."""
    known = [span.advantage for span in spans if span.advantage is not None]
    ends = dict.fromkeys((min(known), max(known))) if known else {}
    return "advantage " + " to ".join(f"{value:+.3g}" for value in ends) if ends else ""


def find_largest_advantage(blocks: Iterable[Block]) -> float:
    """The size of the largest advantage."""
    return max((abs(span.advantage or 0.0) for block in blocks for span in block.spans), default=0.0)

"""Rewards for the shape of a reply: tags, a pattern, length, repetition."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from aurify.errors import UserError
from aurify.rewards.answers import take_answer
from aurify.rewards.words import list_words
from aurify.types import Task, Trajectory


def tags(
    order: Sequence[str] = ("think", "answer"), opened: bool = False, partial: bool = False
) -> Callable[[Task, Trajectory], float]:
    """1 if the reply is `<think>...</think> <answer>...</answer>`: each tag once, in this order, with something inside
    and nothing but white space outside. opened: the prompt has written the first opening tag already. partial: the
    share of the tags that stand right, up to the first mistake."""
    if isinstance(order, str) or not order or len(set(order)) != len(order):
        raise UserError(
            f"reward 'tags': order is {order!r}; expected a list of different names, such as [think, answer]"
        )
    wanted = [f"<{slash}{name}>" for name in order for slash in ("", "/")]
    splitter = re.compile(f"({'|'.join(map(re.escape, wanted))})")

    def score(task: Task, trajectory: Trajectory) -> float:
        text = wanted[0] * opened + trajectory.text
        right, complete = walk_reply_tags(splitter.split(text), wanted)
        if partial:
            given = int(opened)
            return max(0, right - given) / (len(wanted) - given)
        return float(complete)

    return score


def walk_reply_tags(parts: Sequence[str], wanted: Sequence[str]) -> tuple[int, bool]:
    """How many tags stand as they should, and whether that is all there is. parts: text, tag, text, tag, ..., text.

    State k: k tags were read. It is inside where k is odd; there text must stand, elsewhere none may."""
    for state, (text, tag) in enumerate(zip(parts[::2], [*parts[1::2], None], strict=True)):
        inside = state % 2 == 1
        if bool(text.strip()) != inside:
            return state, False
        if tag is None:
            return state, state == len(wanted)
        if state == len(wanted) or tag != wanted[state]:
            return state, False
    raise AssertionError("a split ends with text")


def format_match(pattern: str) -> Callable[[Task, Trajectory], float]:
    """1 if the whole reply matches a regular expression, such as `<think>.*</think>.*`."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"reward 'format': {pattern!r} is no regular expression: {error}") from error

    def matches(task: Task, trajectory: Trajectory) -> float:
        return float(compiled.fullmatch(trajectory.text.strip()) is not None)

    return matches


def length_penalty(max_tokens: int, over: int) -> Callable[[Task, Trajectory], float]:
    """0 up to `max_tokens` sampled tokens, falling to -1 at `max_tokens + over` (the soft overlong penalty of DAPO)."""
    if over < 1:
        raise UserError(f"reward 'length': over is {over}; it must be at least 1 token")

    def penalty(task: Task, trajectory: Trajectory) -> float:
        return -min(1.0, max(0.0, (trajectory.num_policy_tokens - max_tokens) / over))

    return penalty


def num_words(at_least: int = 0, at_most: int | None = None) -> Callable[[Task, Trajectory], float]:
    """1 if the answer has so many words, thoughts not counted; outside, the share that the nearer bound and the number
    have in common."""
    if at_least < 0 or (at_most is not None and at_most < max(1, at_least)):
        raise UserError(f"reward 'num_words': at_least is {at_least} and at_most {at_most}; no reply can have so many")

    def score(task: Task, trajectory: Trajectory) -> float:
        answer = take_answer(trajectory)
        if answer is None:
            return 0.0
        num = len(list_words(answer))
        if num < at_least:
            return num / at_least
        return 1.0 if at_most is None or num <= at_most else at_most / num

    return score


def repetition(size: int = 4) -> Callable[[Task, Trajectory], float]:
    """Minus the share of the reply's sequences of `size` words that stood in it before: 0 for none, near -1 for a reply
    that goes in circles. Thoughts count, too."""
    if size < 1:
        raise UserError(f"reward 'repetition': size is {size}; it must be at least 1 word")

    def penalty(task: Task, trajectory: Trajectory) -> float:
        words = list_words(trajectory.text)
        grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return penalty

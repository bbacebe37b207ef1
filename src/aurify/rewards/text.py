"""Rewards for answers that are text: equality, likeness, shape, length and repetition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from aurify.errors import UserError
from aurify.types import Task, Trajectory


def normalised(text: str) -> str:
    """Lower case, white space collapsed, no closing full stop."""
    return " ".join(text.lower().split()).removesuffix(".")


def exact_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the reply is the answer, apart from case, white space and a closing full stop."""
    return None if task.answer is None else float(normalised(trajectory.text) == normalised(task.answer))


CHOICE = re.compile(r"(?<![\w'])\(?([A-Z])\)?(?![\w'])")


def choice_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the last capital letter that stands alone in the reply, as in "the answer is (B).", is the answer."""
    if task.answer is None:
        return None
    expected = CHOICE.findall(task.answer)
    if len(expected) != 1:
        raise ValueError(f"the answer {task.answer!r} of task {task.id!r} is no single letter; use exact_match")
    return float(CHOICE.findall(trajectory.text)[-1:] == expected)


def contains_answer(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the answer stands somewhere in the reply. Hacked by listing everything: a first signal, not a goal."""
    return None if task.answer is None else float(normalised(task.answer) in normalised(trajectory.text))


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


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def references(task: Task) -> list[str]:
    """The column `answers` if the task has one, else its answer."""
    several = task.info.get("answers")
    return [str(text) for text in several] if several else [task.answer] if task.answer is not None else []


def rouge_l(task: Task, trajectory: Trajectory) -> float | None:
    """ROUGE-L: the F1 of the longest common subsequence of words with the answer; with several answers, the best."""
    reply = words_of(trajectory.text)
    scores = []
    for text in references(task):
        wanted = words_of(text)
        scores.append(f1_of(common_subsequence(reply, wanted), reply, wanted))
    return max(scores, default=None)


def word_f1(task: Task, trajectory: Trajectory) -> float | None:
    """The F1 of the words, in any order, with the answer; with several answers, the best."""
    reply = words_of(trajectory.text)
    scores = []
    for text in references(task):
        wanted = words_of(text)
        scores.append(f1_of((Counter(reply) & Counter(wanted)).total(), reply, wanted))
    return max(scores, default=None)


def f1_of(num_common: int, reply: Sequence[str], wanted: Sequence[str]) -> float:
    return 2 * num_common / (len(reply) + len(wanted)) if reply or wanted else 1.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest one, by rows of the table."""
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = corner + 1 if word == other else max(above, row[place - 1])
            corner = above
    return row[-1]


def num_words(at_least: int = 0, at_most: int | None = None) -> Callable[[Task, Trajectory], float]:
    """1 if the reply has so many words; outside, the share that the nearer bound and the number have in common."""
    if at_least < 0 or (at_most is not None and at_most < max(1, at_least)):
        raise UserError(f"reward 'num_words': at_least is {at_least} and at_most {at_most}; no reply can have so many")

    def score(task: Task, trajectory: Trajectory) -> float:
        num = len(words_of(trajectory.text))
        if num < at_least:
            return num / at_least
        return 1.0 if at_most is None or num <= at_most else at_most / num

    return score


def repetition(size: int = 4) -> Callable[[Task, Trajectory], float]:
    """Minus the share of the reply's sequences of `size` words that stood in it before: 0 for none, near -1 for a reply
    that goes in circles. Where words are not written apart, each counts by its letters."""
    if size < 1:
        raise UserError(f"reward 'repetition': size is {size}; it must be at least 1 word")

    def penalty(task: Task, trajectory: Trajectory) -> float:
        words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+", trajectory.text.lower())
        grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return penalty

"""Rewards for answers that are text: equality, a letter, likeness. They judge what stands after the thoughts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aurify.rewards.answers import read_gold_answers, take_answer, unwrap_answer
from aurify.rewards.choices import read_choice, read_gold_choice
from aurify.rewards.numbers import as_number, list_numbers
from aurify.rewards.words import contains_words, list_words, normalise_words, strip_answer_markdown
from aurify.types import Task, Trajectory


def exact_match(task: Task, trajectory: Trajectory) -> float | None:
    r"""1 if the reply is the answer, or one of the column `answers`, apart from case, white space, Unicode forms,
    quotes, punctuation at the end, Markdown and a tag or \boxed{} around it."""
    golds = read_gold_answers(task)
    if not golds:
        return None
    answer = take_answer(trajectory)
    if answer is None:
        return 0.0
    answer = unwrap_answer(answer)
    forms = {normalise_words(answer), normalise_words(strip_answer_markdown(answer))}
    return float(any(normalise_words(gold) in forms for gold in golds))


def choice_match(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the letter that the reply settles on, as in "the answer is (B).", is the answer."""
    golds = read_gold_answers(task)
    if not golds:
        return None
    expected = [read_gold_choice(gold) for gold in golds]
    if None in expected:
        wrong = golds[expected.index(None)]
        raise ValueError(f"the answer {wrong!r} of task {task.id!r} is no single letter; use exact_match")
    return float(read_choice(take_answer(trajectory) or "") in expected)


def contains_answer(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the answer stands somewhere in the reply, as whole words or a whole number. Hacked by listing everything: a
    first signal, not a goal."""
    golds = read_gold_answers(task)
    if not golds:
        return None
    answer = take_answer(trajectory) or ""
    return float(any(contains_gold(answer, gold) for gold in golds))


def contains_gold(text: str, gold: str) -> bool:
    number = as_number(gold)
    return number in list_numbers(text) if number is not None else contains_words(text, gold)


def rouge_l(task: Task, trajectory: Trajectory) -> float | None:
    """ROUGE-L: the F1 of the longest common subsequence of words with the answer; with several answers, the best."""
    reply = list_words(take_answer(trajectory) or "")
    golds = [list_words(gold) for gold in read_gold_answers(task)]
    return max((rate_word_f1(common_subsequence(reply, gold), reply, gold) for gold in golds), default=None)


def word_f1(task: Task, trajectory: Trajectory) -> float | None:
    """The F1 of the words, in any order, with the answer; with several answers, the best."""
    reply = list_words(take_answer(trajectory) or "")
    golds = [list_words(gold) for gold in read_gold_answers(task)]
    return max((rate_word_f1((Counter(reply) & Counter(gold)).total(), reply, gold) for gold in golds), default=None)


def rate_word_f1(num_common: int, reply: Sequence[str], wanted: Sequence[str]) -> float:
    return 2 * num_common / (len(reply) + len(wanted)) if reply or wanted else 1.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest one, by rows of the table."""
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for index, other in enumerate(b, 1):
            above = row[index]
            row[index] = corner + 1 if word == other else max(above, row[index - 1])
            corner = above
    return row[-1]

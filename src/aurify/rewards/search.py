"""Rewards for answers between <answer> tags, and for the searches before them (Search-R1, arXiv 2503.09516 and
2505.15117). They read what the policy wrote, never the prompt or what was retrieved; an answer in a
thought is none."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

from aurify.rewards.answers import read_gold_answers, take_answer
from aurify.types import Task, Trajectory

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TAGS = re.compile(r"(</?(?:think|search|information|answer)>)")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_last_answer(trajectory: Trajectory) -> str | None:
    """Of the last complete answer element behind the thoughts; None where there is none."""
    found = ANSWER.findall(take_answer(trajectory) or "")
    return found[-1].strip() if found else None


def normalise_answer(text: str) -> str:
    """As SQuAD does it: lower case, no punctuation, no articles, single spaces."""
    words = text.lower().translate(PUNCTUATION).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def answer_em(task: Task, trajectory: Trajectory) -> float | None:
    """1 if the answer equals one of the right ones, both normalised."""
    golds, answer = read_gold_answers(task), read_last_answer(trajectory)
    if not golds:
        return None
    return float(answer is not None and normalise_answer(answer) in map(normalise_answer, golds))


def answer_sub_em(task: Task, trajectory: Trajectory) -> float | None:
    """1 if one of the right answers stands in the answer, as whole words."""
    golds, answer = read_gold_answers(task), read_last_answer(trajectory)
    if not golds:
        return None
    text = f" {normalise_answer(answer or '')} "
    return float(any(f" {normalise_answer(gold)} " in text for gold in golds if normalise_answer(gold)))


def answer_f1(task: Task, trajectory: Trajectory) -> float | None:
    """The F1 of the words of the answer with the right one; with several, the best."""
    golds, answer = read_gold_answers(task), read_last_answer(trajectory)
    if not golds:
        return None
    words = Counter(normalise_answer(answer or "").split())
    return max(rate_answer_overlap(words, Counter(normalise_answer(gold).split())) for gold in golds)


def rate_answer_overlap(said: Counter[str], gold: Counter[str]) -> float:
    total = said.total() + gold.total()
    return 2 * (said & gold).total() / total if total else 0.0


def search_format(
    structure: float = 0.2, final: float = 0.1, retrieval: float = 0.0
) -> Callable[[Task, Trajectory], float | None]:
    """The format-aware reward of arXiv 2505.15117. Right and well formed 1, right 1 - structure, wrong but well formed
    structure (+ retrieval, if a right answer was retrieved), wrong and badly formed `final`, no answer 0."""

    def reward(task: Task, trajectory: Trajectory) -> float | None:
        right = answer_em(task, trajectory)
        if right is None:
            return None
        valid = is_well_formed_search_answer(join_search_turn(trajectory))
        if right:
            return 1.0 if valid else 1.0 - structure
        if valid:
            return structure + (retrieval if retrieval_hit(task, trajectory) else 0.0)
        return final if read_last_answer(trajectory) is not None else 0.0

    return reward


def retrieval_hit(task: Task, trajectory: Trajectory) -> float | None:
    """1 if a right answer stands in something that was retrieved."""
    golds = [normalise_answer(gold) for gold in read_gold_answers(task)]
    if not golds:
        return None
    found = [m["content"] for m in trajectory.completion if m["role"] != "assistant" or not m.get("weight", 1.0)]
    text = f" {normalise_answer(TAGS.sub(' ', ' '.join(found)))} "
    return float(any(f" {gold} " in text for gold in golds if gold))


def join_search_turn(trajectory: Trajectory) -> str:
    """The turn as the model saw it, with what was put into it."""
    return "".join(message["content"] for message in trajectory.completion)


def is_well_formed_search_answer(text: str) -> bool:
    """think -> (search -> information -> think)* -> answer, with nothing but white space between the elements."""
    state = "start"
    following = {"start": {"think"}, "think": {"search", "answer"}, "search": {"information"}, "information": {"think"}}
    inside = ""
    for part in TAGS.split(text):
        if not TAGS.fullmatch(part):
            if part.strip() and not inside:
                return False
            continue
        name = part.strip("</>")
        if part.startswith("</"):
            if name != inside:
                return False
            inside, state = "", name
        elif inside or name not in following.get(state, set()):
            return False
        else:
            inside = name
    return state == "answer" and not inside

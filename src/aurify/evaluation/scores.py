"""Several answers to each task: how often one of k is right (pass@k), what the commonest of k earns (majority@k)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from aurify.evaluation.evaluate import Estimate, Evaluation, estimate_mean, read_answer_values
from aurify.rewards.answers import extract_answer, take_answer
from aurify.rewards.numbers import read_exact_number
from aurify.types import Group, Trajectory

Vote = tuple[Hashable | None, float]  # the answer that a reply settles on, None where it settles on none; what it earns


def list_answer_counts(num_answers: int) -> list[int]:
    """The k of pass@k: powers of two, and the number of answers itself."""
    powers = [2**power for power in range(num_answers.bit_length()) if 2**power < num_answers]
    return [*powers, num_answers]


def estimate_pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """The probability that one of k answers is right, from more answers than that: 1 - C(n - c, k) / C(n, k). It is
    unbiased, which 1 - (1 - c / n)^k is not (Chen et al. 2021, Evaluating Large Language Models Trained on Code,
    arXiv:2107.03374, equation 1)."""
    if not 0 < k <= num_answers:
        raise ValueError(f"pass@{k} of {num_answers} answers")
    return 1.0 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def measure_pass_rates(
    groups: Sequence[Group], measure: str, num_answers: int, success: float = 1.0
) -> dict[int, Estimate]:
    """pass@k for each k, with the standard error over tasks. success: from what reward on an answer is right. An answer
    that failed, and is missing in its group, is wrong."""
    right = [sum(value >= success for value in read_answer_values(group, measure)) for group in groups]
    return {
        k: estimate_mean([estimate_pass_at_k(num_answers, num_right, k) for num_right in right])
        for k in list_answer_counts(num_answers)
    }


def measure_majorities(groups: Sequence[Group], measure: str, num_answers: int) -> dict[int, Estimate]:
    """majority@k for each k: the mean over the blocks of k answers that there are, with the standard error over
    tasks."""
    votes = [list_group_votes(group, measure, num_answers) for group in groups]
    return {k: estimate_mean([average_majority(row, k) for row in votes]) for k in list_answer_counts(num_answers)}


def list_group_votes(group: Group, measure: str, num_answers: int) -> list[Vote]:
    values = read_answer_values(group, measure)
    known = [(read_vote(t), value) for t, value in zip(group.trajectories, values, strict=True)]
    return [*known, *[(None, 0.0)] * (num_answers - len(known))]


def read_vote(trajectory: Trajectory) -> Hashable | None:
    """Equal for replies that settle on the same answer: 1,200 and 1200.0, "Paris" and "paris "."""
    text = take_answer(trajectory)
    if text is None:
        return None
    answer = extract_answer(text) or text
    number = read_exact_number(answer)
    return number if number is not None else " ".join(answer.casefold().split()) or None


def average_majority(votes: Sequence[Vote], k: int) -> float:
    blocks = (votes[start : start + k] for start in range(0, len(votes) - k + 1, k))
    return statistics.fmean(map(rate_majority, blocks))


def rate_majority(votes: Sequence[Vote]) -> float:
    """What the commonest answer earns; where several are as common, their mean, as if one of them were drawn. Replies
    that settle on none do not vote."""
    earned: dict[Hashable, list[float]] = defaultdict(list)
    for answer, value in votes:
        if answer is not None:
            earned[answer].append(value)
    most = max(map(len, earned.values()), default=0)
    return statistics.fmean([statistics.fmean(row) for row in earned.values() if len(row) == most] or [0.0])


@dataclass(frozen=True)
class Scored:
    """How one model did one task set: its mean, and where it gave several answers to a task pass@k and majority@k."""

    model: str
    task: str
    evaluation: Evaluation
    pass_at: dict[int, Estimate]
    majority_at: dict[int, Estimate]

    def to_record(self) -> dict[str, Any]:
        record = {"model": self.model, "task": self.task, **self.evaluation.record()}
        for name, rates in (("pass_at", self.pass_at), ("majority_at", self.majority_at)):
            record |= {name: {str(k): {"value": e.value, "error": e.error} for k, e in rates.items()}} if rates else {}
        return record


def score_evaluation(model: str, task: str, evaluation: Evaluation, num_answers: int, success: float = 1.0) -> Scored:
    """num_answers: that each task was to have; of a single one there is nothing more to say than its mean."""
    if num_answers == 1:
        return Scored(model, task, evaluation, {}, {})
    groups, measure = evaluation.groups, evaluation.measure
    passed = measure_pass_rates(groups, measure, num_answers, success)
    return Scored(model, task, evaluation, passed, measure_majorities(groups, measure, num_answers))

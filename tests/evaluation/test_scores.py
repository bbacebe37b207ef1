"""pass@k, majority@k and paired comparisons, against what can be counted or drawn by hand."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from aurify.evaluation.paired import compare_paired, run_sign_test
from aurify.evaluation.scores import (
    average_majority,
    estimate_pass_at_k,
    list_answer_counts,
    measure_majorities,
    measure_pass_rates,
    rate_majority,
    read_vote,
)
from aurify.types import Group, Task, Trajectory


def say(text: str, value: float | None = 0.0) -> Trajectory:
    return Trajectory([], [{"role": "assistant", "content": text}], 0, rewards={"right": value})


def ask(*answers: tuple[str, float | None]) -> Group:
    return Group(Task("t", []), [say(*answer) for answer in answers])


@pytest.mark.parametrize("num", [1, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_with_a_right_one(num):
    for num_right in range(num + 1):
        answers = [True] * num_right + [False] * (num - num_right)
        for k in range(1, num + 1):
            choices = [any(chosen) for chosen in combinations(answers, k)]
            assert estimate_pass_at_k(num, num_right, k) == pytest.approx(sum(choices) / len(choices))
    with pytest.raises(ValueError, match="pass@9"):
        estimate_pass_at_k(8, 1, 9)


def test_pass_at_k_has_no_bias():
    """Of answers right with probability 0.2, one of 4 is right with 1 - 0.8^4 = 0.5904; the plain formula says less."""
    generator = random.Random(0)
    counts = [sum(generator.random() < 0.2 for _ in range(6)) for _ in range(20_000)]
    estimates = [estimate_pass_at_k(6, num_right, 4) for num_right in counts]
    plain = [1 - (1 - num_right / 6) ** 4 for num_right in counts]
    assert sum(estimates) / len(estimates) == pytest.approx(0.5904, abs=0.01)
    assert sum(plain) / len(plain) < 0.57


def test_pass_rates_count_answers_that_failed_as_wrong():
    groups = [ask(("1", 1.0), ("2", 0.5), ("3", None), ("4", 0.0)), ask(("1", 1.0), ("1", 1.0))]
    rates = measure_pass_rates(groups, "right", 4)
    assert list(rates) == [1, 2, 4]
    assert rates[1].value == pytest.approx((1 / 4 + 2 / 4) / 2) and rates[4].value == 1.0
    assert rates[1].error == pytest.approx(math.sqrt(2 * 0.125**2) / math.sqrt(2))
    assert measure_pass_rates(groups, "right", 4, success=0.5)[1].value == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_answers_are_counted_by_powers_of_two():
    assert [list_answer_counts(num) for num in (1, 2, 3, 8, 10)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 10],
    ]


def test_equal_answers_get_one_vote_however_they_are_written():
    for alike in (("It is 1,200.", "so \\boxed{1200}", "1200.0"), ("Paris", " paris\n"), ("#### 1/2", "0.5")):
        assert len({read_vote(say(text)) for text in alike}) == 1, alike
    assert read_vote(say("It is 12.")) != read_vote(say("It is 13."))
    assert read_vote(say("<think>it never ends")) is None and read_vote(say("  ")) is None
    assert read_vote(say("9" * 6000)) is not None, "more digits than Python writes"


def test_the_commonest_answer_wins_and_ties_are_shared():
    assert rate_majority([("7", 1.0), ("8", 0.0), ("7", 1.0)]) == 1.0
    assert rate_majority([("7", 1.0), ("8", 0.0), ("8", 0.0)]) == 0.0
    assert rate_majority([("7", 1.0), ("8", 0.0)]) == 0.5
    assert rate_majority([(None, 0.0), (None, 0.0), ("7", 1.0)]) == 1.0, "who settles on nothing does not vote"
    assert rate_majority([(None, 0.0)]) == 0.0


def test_majority_of_fewer_answers_is_the_mean_over_blocks():
    votes = [("7", 1.0), ("7", 1.0), ("8", 0.0), ("8", 0.0), ("7", 1.0)]
    assert average_majority(votes, 2) == 0.5 and average_majority(votes, 5) == 1.0
    assert average_majority(votes, 3) == 1.0, "the rest of two makes no block of three"
    groups = [ask(("7", 1.0), ("7", 1.0), ("8", 0.0)), ask(("8", 0.0))]
    assert measure_majorities(groups, "right", 3)[3].value == 0.5


def test_a_paired_difference_has_the_error_of_the_pairs():
    """Differences 1, 0, 0, 1: mean 1/2, variance 1/3. The two means alone have a larger error."""
    found = compare_paired([0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0])
    assert (found.difference, found.num, found.num_better, found.num_worse) == (0.5, 4, 2, 0)
    assert found.error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert found.p == 0.5, "two heads of two, or two tails"
    assert compare_paired([1.0], [1.0]).p == 1.0
    with pytest.raises(ValueError, match="zip"):
        compare_paired([1.0], [1.0, 0.0])


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (9, 1), (5, 5), (3, 12), (40, 20)])
def test_the_sign_test_is_the_exact_binomial_one(better, worse):
    scipy = pytest.importorskip("scipy.stats")
    known = scipy.binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert run_sign_test(better, worse) == pytest.approx(known)
    assert run_sign_test(2000, 2400) < 1e-8, "more tasks than a float can count choices of"

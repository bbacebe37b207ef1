"""Tasks made in code: right answers, seeded and disjoint splits, ids that stay unique when sets are merged."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from itertools import islice

import pytest

from aurify import tasks
from aurify.errors import UserError
from aurify.types import Segment, Trajectory

NAMES = ("largest_number", "arithmetic", "sorting", "count_letters", "reverse_words")


def asked(task):
    return task.prompt[-1]["content"]


def answered(task, text):
    messages = [*task.prompt, {"role": "assistant", "content": text}]
    return Trajectory([Segment([1], "prompt")], messages, len(task.prompt))


def score(taskset, task, text):
    trajectory = answered(task, text)
    asyncio.run(taskset.rubric.score(task, [trajectory]))
    return trajectory.reward


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_seeded_and_disjoint(name):
    taskset, again = tasks.make(name), tasks.make(name)
    train = list(islice(taskset.train(0), 300))
    assert train == list(islice(again.train(0), 300))
    assert train != list(islice(taskset.train(1), 300))
    assert taskset.heldout == again.heldout
    heldout = {asked(task) for task in taskset.heldout}
    assert len(heldout) == len(taskset.heldout) >= 20
    assert not heldout & {asked(task) for task in train}


@pytest.mark.parametrize("name", NAMES)
def test_the_demonstration_earns_the_reward(name):
    taskset = tasks.make(name)
    for task in islice(taskset.train(3), 20):
        assert score(taskset, task, taskset.demonstration(task)) == 1.0
        assert score(taskset, task, "I do not know") == 0.0


def test_answers():
    for task in islice(tasks.make("largest_number", count=4, maximum=50).train(0), 50):
        numbers = [int(n) for n in re.findall(r"\d+", asked(task))]
        assert len(set(numbers)) == 4
        assert max(numbers) == int(task.answer) <= 50
    for task in islice(tasks.make("arithmetic", digits=2, operators="+-*").train(0), 50):
        assert eval(re.search(r"\d+ [-+*] \d+", asked(task)).group()) == int(task.answer)
    for task in islice(tasks.make("sorting", count=6).train(0), 50):
        numbers = [int(n) for n in re.findall(r"\d+", asked(task))]
        assert [int(n) for n in task.answer.split(", ")] == sorted(numbers)
    for task in islice(tasks.make("count_letters", words=3).train(0), 50):
        letter, text = re.search(r"letter (\w) in '(.*)'", asked(task)).groups()
        assert text.count(letter) == int(task.answer)
    for task in islice(tasks.make("reverse_words").train(0), 50):
        assert task.answer.split()[::-1] == asked(task).split(": ")[1].split()


def test_no_constant_answer_pays():
    for name in NAMES:
        counts = Counter(task.answer for task in islice(tasks.make(name).train(0), 1000))
        assert counts.most_common(1)[0][1] < 450, name


def test_naming_all_numbers_does_not_pay():
    taskset = tasks.make("largest_number")
    rewards = [score(taskset, task, asked(task).split(": ")[1].split("?")[0]) for task in taskset.heldout]
    assert sum(rewards) / len(rewards) < 0.35  # right where the largest one happens to stand last: one in five


def test_ids_are_unique_over_merged_sets():
    """T6: sets of one name with other options, and several seeds: one id for one prompt."""
    merged = [
        *(task for count in (3, 5) for task in tasks.make("largest_number", count=count).heldout),
        *(task for seed in (0, 1) for task in islice(tasks.make("largest_number", count=3).train(seed), 200)),
        *(task for name in NAMES[1:] for task in islice(tasks.make(name).train(0), 200)),
    ]
    by_id, by_prompt = {}, {}
    for task in merged:
        assert by_id.setdefault(task.id, task) == task
        assert by_prompt.setdefault(asked(task), task.id) == task.id
    assert len(by_id) > 900


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("largest_numbr", {}, "unknown task 'largest_numbr'; did you mean 'largest_number'"),
        ("largest_number", {"cuont": 3}, "no option 'cuont'; did you mean 'count'"),
        ("largest_number", {"count": 1}, "task.count: 1 is out of range; it must be from 2 to 99"),
        ("largest_number", {"count": "five"}, "task 'largest_number': 'count' is 'five'; expected an integer"),
        ("largest_number", {"count": True}, "'count' is true; expected an integer"),
        ("arithmetic", {"operators": ["+"]}, r"'operators' is \['\+'\]; expected text"),
        ("sorting", {"reward": "exact_mach"}, "unknown reward 'exact_mach'; did you mean 'exact_match'"),
        ("sorting", {"environment": "single_trun"}, "unknown environment 'single_trun'; did you mean 'single_turn'"),
        ("sorting", {"environment": {"name": "single_turn", "tries": 2}}, "'single_turn' has no option 'tries'"),
        ("largest_number", {"maximum": 6, "num_heldout": 900}, "only 720 different ones"),
        ("arithmetic", {"operators": "/"}, "must be made of some of"),
        ("sorting", {"num_heldout": 0}, "num_heldout is 0; at least 1"),
        ("gsm8k_", {}, "did you mean 'gsm8k'"),
        ("jsonl", {}, "task 'jsonl' needs the option 'path'"),
    ],
)
def test_mistakes(name, options, expected):
    with pytest.raises(UserError, match=expected):
        tasks.make(name, **options)


def test_a_set_that_is_held_out_whole_says_so():
    taskset = tasks.make("largest_number", count=2, maximum=3, num_heldout=6)
    with pytest.raises(UserError, match="all problems are held out"):
        next(taskset.train(0))

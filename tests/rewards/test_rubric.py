"""Weighted rewards with a breakdown, both signatures, and what happens to rewards that fail."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time

import pytest

from aurify import registry
from aurify.errors import UserError
from aurify.rewards.model import ModelReward
from aurify.rewards.rubric import MAX_FAILURES_IN_A_ROW, Rubric, build_rubric
from aurify.types import Segment, Task, Trajectory

TASK = Task("t/1", [{"role": "user", "content": "Say 7, as in 7."}], "7", {"level": 3})


def said(text, num_tokens=4):
    messages = [*TASK.prompt, {"role": "assistant", "content": text}]
    policy = Segment([5] * num_tokens, "policy", [-1.0] * num_tokens)
    return Trajectory([Segment([1, 2], "prompt"), policy], messages, 1)


def score(rewards, *texts, task=TASK):
    rubric = rewards if isinstance(rewards, Rubric) else Rubric(rewards)
    trajectories = [said(text) for text in texts]
    asyncio.run(rubric.score(task, trajectories))
    return trajectories


def length(task, trajectory):
    return float(len(trajectory.text))


def only_long(task, trajectory):
    return 1.0 if len(trajectory.text) > 2 else None


def test_the_reward_is_the_weighted_sum_with_its_breakdown():
    first, second = score([(length, 0.5, "len"), (only_long, 2.0)], "abc", "ab")
    assert first.rewards == {"len": 3.0, "only_long": 1.0}
    assert first.reward == 0.5 * 3 + 2.0
    assert second.rewards == {"len": 2.0, "only_long": None}  # None is masked, not zero
    assert second.reward == 1.0


def test_no_reward_that_applies_leaves_none():
    [trajectory] = score([only_long], "a")
    assert trajectory.reward is None


def test_rewards_of_the_environment_are_added_once():
    trajectory = said("abc")
    trajectory.rewards = {"steps": -0.5}
    rubric = Rubric([length])
    for _ in range(2):  # scoring again changes nothing
        asyncio.run(rubric.score(TASK, [trajectory]))
    assert trajectory.reward == 2.5
    assert trajectory.rewards == {"steps": -0.5, "length": 3.0}


def test_async_rewards():
    async def slow(task, trajectory):
        await asyncio.sleep(0)
        return 2

    async def slow_batch(completions, **kwargs):
        await asyncio.sleep(0)
        return [3.0] * len(completions)

    assert score([slow, slow_batch], "a")[0].reward == 5.0


def test_async_rewards_of_a_group_run_at_the_same_time():
    """Two rewards, four completions: all eight wait for one another, which one after the other never could."""
    waiting = []

    async def meets(task, trajectory):
        event = asyncio.Event()
        waiting.append(event)
        if len(waiting) == 8:
            for other in waiting:
                other.set()
        await asyncio.wait_for(event.wait(), 5)
        return float(len(trajectory.text))

    async def meets_too(task, trajectory):
        return -await meets(task, trajectory)

    trajectories = score([meets, (meets_too, 0.5)], "a", "ab", "abc", "abcd")
    assert [t.reward for t in trajectories] == [0.5, 1.0, 1.5, 2.0]
    assert trajectories[3].rewards == {"meets": 4.0, "meets_too": -4.0}


def test_a_threaded_reward_leaves_the_loop_free():
    barrier = threading.Barrier(3, timeout=5)

    def slow(task, trajectory):
        barrier.wait()  # passes only when three threads are here
        return 1.0

    slow.threaded = True
    assert [t.reward for t in score([slow], "a", "b", "c")] == [1.0] * 3


def test_what_the_user_has_to_mend_stops_the_run():
    def without_extra(task, trajectory):
        raise UserError("reward 'x' needs y; install it")

    rubric = Rubric([length, without_extra])
    score(Rubric([length]), "a")
    with pytest.raises(UserError, match="reward 'x' needs y"):
        score(rubric, "a", "b")


def test_the_signature_of_trl():
    def with_columns(prompts, completions, answer, level, **kwargs):
        assert prompts == [TASK.prompt, TASK.prompt]
        assert level == [3, 3]
        assert kwargs["completion_ids"] == [[5] * 4] * 2
        return [float(c[0]["content"] == a) for c, a in zip(completions, answer, strict=True)]

    def few_arguments(completions, level):
        return [None, level[1]]

    first, second = score([with_columns, few_arguments], "7", "8")
    assert first.rewards == {"with_columns": 1.0, "few_arguments": None}
    assert (first.reward, second.reward) == (1.0, 3.0)


def test_rewards_see_generated_text_alone():
    """T5: the prompt holds the answer; neither signature gives credit for it."""

    def contains(task, trajectory):
        return float("7" in trajectory.text)

    def contains_trl(completions, **kwargs):
        return [float("7" in str(completion)) for completion in completions]

    rubric = Rubric([contains, contains_trl, registry.get_entry("reward", "number_match")])
    wrong, right = score(rubric, "no idea", "it is 7")
    assert set(wrong.rewards.values()) == {0.0}
    assert set(right.rewards.values()) == {1.0}


def test_a_raising_reward_is_masked_and_counted():
    def sometimes(task, trajectory):
        return 1 / len(trajectory.text)

    rubric = Rubric([sometimes, (length, 1.0)])
    empty, full = score(rubric, "", "ab")
    assert empty.rewards == {"sometimes": None, "length": 0.0}
    assert full.reward == 2.5
    assert rubric.num_failures == {"sometimes": 1}
    assert "ZeroDivisionError" in rubric.failures["sometimes"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", [1.0, 2.0], object()])
def test_what_is_no_number_is_masked_and_counted(bad):
    def odd(task, trajectory):
        return bad if trajectory.text == "x" else 1.0

    rubric = Rubric([odd])
    wrong, right = score(rubric, "x", "y")
    assert (wrong.reward, right.reward) == (None, 1.0)
    assert "not a finite number" in rubric.failures["odd"]


def test_a_reward_that_only_fails_is_an_error_with_its_name():
    def broken(task, trajectory):
        raise KeyError("gold")

    with pytest.raises(UserError, match=r"reward 'broken' failed .* 't/1' it raised KeyError: 'gold'"):
        score([length, broken], "a", "b")
    with pytest.raises(UserError, match=r"reward 'nothing' failed .* returned nan, which is not a finite number"):
        score([(lambda task, trajectory: math.nan, 1.0, "nothing")], "a")
    with pytest.raises(UserError, match="missing 1 required positional argument: 'gold'"):
        score([trl_with_unknown_column], "a")
    with pytest.raises(UserError, match="gave 1 values for 2 completions"):
        score([one_value], "a", "b")


def trl_with_unknown_column(completions, gold):
    return [0.0] * len(completions)


def one_value(completions, **kwargs):
    return [0.0]


def test_a_reward_that_has_worked_may_fail_for_a_task_but_not_for_good():
    def fragile(task, trajectory):
        return 1.0 if trajectory.text == "good" else math.nan

    rubric = Rubric([fragile])
    score(rubric, "good")
    for _ in range(10):
        score(rubric, *["bad"] * (MAX_FAILURES_IN_A_ROW - 1))
        score(rubric, "bad", "good")
    score(rubric, *["bad"] * (MAX_FAILURES_IN_A_ROW - 1))
    with pytest.raises(UserError, match=f"all of the last {MAX_FAILURES_IN_A_ROW} completions"):
        score(rubric, "bad")


def test_names_are_unique():
    with pytest.raises(UserError, match="'length' is used twice"):
        Rubric([length, length])
    assert [reward.name for reward in Rubric([length, (length, 2.0, "again")]).rewards] == ["length", "again"]


def test_a_reward_model_scores_the_sampled_tokens_a_group_at_a_time():
    calls = []

    class Scorer:
        def scores(self, data):
            calls.append(data)
            return [float(len(datum.tokens)) for datum in data]

    trajectories = [said("a", 2), said("b", 5)]
    asyncio.run(Rubric([(ModelReward(Scorer()), 0.1)]).score(TASK, trajectories))
    assert [t.rewards for t in trajectories] == [{"reward_model": 4.0}, {"reward_model": 7.0}]
    assert trajectories[1].reward == pytest.approx(0.7)
    assert [[datum.tokens for datum in data] for data in calls] == [[[1, 2, 5, 5], [1, 2, 5, 5, 5, 5, 5]]]
    assert ModelReward(Scorer())(TASK, said("a", 1)) == 3.0


def test_rewards_of_a_recipe():
    rubric = build_rubric(["number_match", ["exact_match", 0.5], {"name": "format", "weight": 0.2, "pattern": r"\d+"}])
    weights = {reward.name: reward.weight for reward in rubric.rewards}
    assert weights == {"number_match": 1.0, "exact_match": 0.5, "format": 0.2}
    assert score(rubric, "7")[0].reward == pytest.approx(1.7)
    assert score(rubric, "is 7")[0].reward == 1.0
    assert build_rubric("exact_match").rewards[0].name == "exact_match"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("exactmatch", "unknown reward 'exactmatch'; did you mean 'exact_match'"),
        ({"name": "length", "max_tokens": "many", "over": 1}, "'length': 'max_tokens' is 'many'; expected an int"),
        ("tells_nothing", r"'tells_nothing' takes no trajectory, .* and gave 0.5; it must return a reward"),
        ("breaks", r"reward 'breaks' raised ZeroDivisionError: division by zero \(.*test_rubric.py:\d+\)"),
        (["format"], r"'format' needs the option 'pattern'; write \{name: ..., pattern: ...\}"),
        ([{"name": "format", "patern": "x"}], "no option 'patern'; did you mean 'pattern'"),
        ([{"name": "number_match", "digits": 2}], "'number_match' takes no options; 'digits' is given"),
        ([["number_match", "high"]], "its weight is 'high'; expected a number"),
        ([3], "reward 3: expected a name"),
        ([{"name": "format", "pattern": "("}], r"'\(' is no regular expression"),
        ([{"name": "length", "max_tokens": 5, "over": 0}], "over is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_a_recipe(entries, expected, monkeypatch):
    own = {"tells_nothing": lambda: 0.5, "breaks": lambda: 1 / 0}
    monkeypatch.setitem(registry.ENTRIES, "reward", registry.ENTRIES["reward"] | own)
    with pytest.raises(UserError, match=expected):
        build_rubric(entries)


def test_a_plain_reward_that_blocks_runs_in_a_thread_one_call_after_the_other():
    """Two rewards that wait for each other: in the event loop they would never meet. And neither meets itself."""
    together, running = threading.Barrier(2, timeout=20), []

    def blocking(name):
        def reward(task, trajectory):
            running.append(name)
            assert running.count(name) == 1, "a function that does not say it may run beside itself"
            together.wait()
            running.remove(name)
            return 1.0

        return reward

    for trajectory in score([(blocking("a"), 1.0, "a"), (blocking("b"), 1.0, "b")], "x", "y", "z"):
        assert trajectory.rewards == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("threaded", [None, True])
def test_a_reward_that_hangs_ends_at_its_time_limit_and_is_counted_as_failed(threaded):
    def hanging(task, trajectory):
        if trajectory.text == "hang":
            threading.Event().wait(20)
        return 1.0

    if threaded:
        hanging.threaded = True
    rubric = Rubric([hanging], seconds=0.2)
    began = time.monotonic()
    first, second, third = score(rubric, "x", "hang", "y")
    assert time.monotonic() - began < 10
    assert (first.reward, second.reward, third.reward) == (1.0, None, 1.0)
    assert rubric.num_failures["hanging"] == 1
    assert "the reward took longer than 0.2 seconds" in rubric.failures["hanging"]


def test_an_async_reward_that_never_answers_ends_at_its_time_limit():
    async def silent(task, trajectory):
        if trajectory.text == "hang":
            await asyncio.sleep(3600)
        return 1.0

    rubric = Rubric([silent], seconds=0.2)
    first, second = score(rubric, "x", "hang")
    assert (first.reward, second.reward) == (1.0, None) and rubric.num_failures["silent"] == 1


def test_a_reward_that_uses_signals_runs_in_the_main_thread():
    """As math_verify does for its own time limits."""

    def signals(task, trajectory):
        previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, previous)
        return 1.0

    rubric = Rubric([signals])
    for _ in range(2):
        assert [trajectory.reward for trajectory in score(rubric, "x", "y")] == [1.0, 1.0]
    assert not rubric.failures


def test_a_reward_that_says_so_stays_in_the_thread_of_its_caller():
    def here(task, trajectory):
        return float(threading.current_thread() is threading.main_thread())

    assert score([here], "x")[0].reward == 0.0
    here.threaded = False
    assert score([here], "x")[0].reward == 1.0


def test_no_trajectories_are_no_failure():
    asyncio.run(Rubric([length]).score(TASK, []))

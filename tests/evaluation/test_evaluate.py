"""Held-out numbers, on scripted answers where they can be counted by hand."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from aurify import tasks
from aurify.engine.engine import Engine
from aurify.environments.env import Step
from aurify.environments.player import RolloutOptions
from aurify.environments.rollout import Limits
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.evaluation.evaluate import (
    compute_heldout_likelihoods,
    compute_heldout_scores,
    evaluate,
    heldout_loss,
    label_accuracy,
    length_correlation,
    pair_accuracy,
    pair_margin,
)
from aurify.models.model import tiny_model
from aurify.models.tiny import byte_tokenizer
from aurify.renderer import Renderer
from aurify.rewards.rubric import SECONDS, Rubric
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import Datum, SamplingParams

PARAMS = SamplingParams(max_tokens=8)


def scored(replies: list[str], *, rubric: Rubric | None = None, **options: Any) -> Any:
    tokenizer = byte_tokenizer()
    taskset = tasks.make("largest_number", count=2, maximum=9, num_heldout=10)
    if rubric:
        taskset.rubric = rubric
    return asyncio.run(
        evaluate(taskset, ScriptedSampler(replies, tokenizer), Renderer(tokenizer), PARAMS, **options)
    ), taskset


def test_accuracy_is_the_share_of_tasks_answered_rightly():
    _, taskset = scored(["0"])
    answers = [str(task.answer) for task in taskset.heldout]
    result, _ = scored(["it is " + answer if k < 3 else "0" for k, answer in enumerate(answers)])
    assert (result.value, result.num) == (0.3, 10)
    assert result.error == pytest.approx(math.sqrt(0.3 * 0.7 / 9))
    assert result.metrics["truncated"] == 0 and result.metrics["reward"] == 0.3
    assert result.record()["value"] == 0.3
    assert [group.task.id for group in result.groups] == [task.id for task in taskset.heldout]


def test_further_rewards_do_not_touch_accuracy_and_missing_ones_count_as_wrong():
    def answer(task: Any, trajectory: Any) -> float | None:
        return None if trajectory.text == "0" else 1.0

    def bonus(task: Any, trajectory: Any) -> float:
        return 5.0

    result, _ = scored(["0", "1"], rubric=Rubric([answer, (bonus, 2.0)]), num_tasks=4)
    assert result.value == 0.5 and result.num == 4
    assert result.metrics["reward"] == 10.5 and result.metrics["reward_bonus"] == 5.0
    assert "reward_answer" not in result.metrics, "that is the value"


def test_several_answers_a_task_are_averaged_first():
    _, taskset = scored(["0"])
    right = str(taskset.heldout[0].answer)
    result, _ = scored([right, "0", "0", "0"], num_tasks=1, samples_per_task=4)
    assert (result.value, result.error, result.num) == (0.25, 0.0, 1)
    with pytest.raises(UserError, match="no held-out tasks"):
        scored(["0"], num_tasks=0)


def test_the_same_seed_gives_the_same_answers():
    engine = Engine(tiny_model(), trainable=False)
    taskset = tasks.make("largest_number", num_heldout=6)

    def texts(seed: int) -> list[str]:
        async def answer() -> Any:
            sampler = InProcessSampler(engine)
            try:
                return await evaluate(
                    taskset, sampler, Renderer(engine.tokenizer), PARAMS, samples_per_task=2, seed=seed
                )
            finally:
                await sampler.close()

        return [trajectory.text for group in asyncio.run(answer()).groups for trajectory in group.trajectories]

    assert texts(0) == texts(0) != texts(1)
    assert len(set(texts(0))) == 12, "no two answers of one task come from one seed"


def test_pairs_are_counted_a_tie_as_a_half_and_their_margin_is_told():
    """Wins 1, 1/2, 0, 1 with mean 5/8 and variance 11/48; margins 1, 0, -3, 10 with mean 2 and variance 94/3."""
    values = [2.0, 1.0, 1.0, 1.0, 0.0, 3.0, 5.0, -5.0]
    won, margin = pair_accuracy(values), pair_margin(values)
    assert (won.value, won.num) == (0.625, 4) and won.error == pytest.approx(math.sqrt(11 / 48 / 4))
    assert (margin.value, margin.num) == (2.0, 4) and margin.error == pytest.approx(math.sqrt(94 / 3 / 4))
    with pytest.raises(ValueError, match="3 values"):
        pair_accuracy([1.0, 2.0, 3.0])
    assert pair_accuracy([1.0, 0.0]).error == 0.0


def test_losses_and_pairs_agree_with_the_log_probs_of_the_engine():
    engine = Engine(tiny_model(), trainable=False)
    data = [Datum([9, 8, 7, 6, 5][:n], [0.0, 0.0] + [1.0] * (n - 2)) for n in (3, 5, 4, 3)]
    known = engine.logprobs(data)
    assert heldout_loss(engine, data).value == pytest.approx(-sum(map(sum, known)) / 7)
    means = [sum(row) / (len(row) - 2) for row in known]
    assert (
        pair_accuracy(compute_heldout_likelihoods(engine, data)).value
        == ((means[0] > means[1]) + (means[2] > means[3])) / 2
    )
    scores = Engine(tiny_model(scalar_head=True), trainable=False)
    values = scores.scores(data)
    assert (
        pair_accuracy(compute_heldout_scores(scores, data)).value
        == ((values[0] > values[1]) + (values[2] > values[3])) / 2
    )


def test_length_correlation_counts_trained_tokens():
    """Lengths 1, 2, 3 with scores 1, 3, 2: covariance 1/2, both deviations 1. A prompt's length says nothing."""
    data = [Datum([5] * (20 - 3 * n) + [6] * n, [0.0] * (20 - 3 * n) + [1.0] * n) for n in (1, 2, 3)]
    assert length_correlation([1.0, 3.0, 2.0], data) == pytest.approx(0.5)
    assert length_correlation([3.0, 2.0, 1.0], data) == pytest.approx(-1.0)
    assert length_correlation([2.0, 2.0, 2.0], data) == 0 == length_correlation([1.0, 2.0], [data[0]] * 2)


class Known:
    """Gives every trained token its own id as its log-prob."""

    def logprobs(self, data: Any) -> list[list[float]]:
        return [[t * w for t, w in zip(datum.tokens, datum.weights, strict=True)] for datum in data]

    def scores(self, data: Any) -> list[float]:
        raise AssertionError("not needed")


def test_label_accuracy():
    """Means per token 5 and 2 (desirable) against 2 and 4: 5 wins twice, 2 ties once and loses once: 2.5 of 4. Placed
    by the desirable ones: 1 and 1/4, variance 9/32; by the others: 3/4 and 1/2, variance 1/32; each over two."""
    rows = [([5, 5], 1.0), ([1, 3], 1.0), ([2], -1.0), ([4, 4, 4], -1.0)]
    data = [Datum([9, *answer], [0.0] + [1.0] * len(answer), label=label) for answer, label in rows]
    values, labels = compute_heldout_likelihoods(Known(), data), [label for _, label in rows]
    ranked = label_accuracy(values, labels)
    assert (ranked.value, ranked.num) == (2.5 / 4, 4) and ranked.error == pytest.approx(math.sqrt(9 / 64 + 1 / 64))
    with pytest.raises(ValueError, match="one label"):
        label_accuracy(values[:2], labels[:2])


def test_the_error_of_a_loss_is_that_of_a_ratio_over_rows():
    """Losses -10, -4, -2 of 2, 2, 1 tokens: mean -16/5; residuals -3.6, 2.4, 1.2 with variance 10.08."""
    data = [Datum([9, *answer], [0.0] + [1.0] * len(answer)) for answer in ([5, 5], [1, 3], [2])]
    loss = heldout_loss(Known(), data)
    assert loss.value == pytest.approx(-16 / 5) and loss.num == 3
    assert loss.error == pytest.approx(math.sqrt(10.08 / 3) / (5 / 3))


class Patient(SingleTurn):
    """Goes on for ever."""

    async def step(self, message: Any) -> Step:
        return Step([{"role": "user", "content": "go on"}])


@pytest.mark.parametrize(("options", "turns"), [({}, 16), ({"limits": Limits(turns=3)}, 3)])
def test_evaluation_allows_as_many_turns_as_it_is_told(options: dict[str, Any], turns: int) -> None:
    tokenizer = byte_tokenizer()
    taskset = tasks.make("largest_number", num_heldout=1)
    taskset.environment = Patient
    sampler = ScriptedSampler(["0"], tokenizer)
    asyncio.run(evaluate(taskset, sampler, Renderer(tokenizer), PARAMS, **options))
    assert len(sampler.prompts) == turns


def test_the_turns_of_an_evaluation_are_those_of_its_stage_unless_it_says_otherwise() -> None:
    from aurify.pipeline.recipe import build_recipe

    values = {"model": "random:tiny", "task": "sorting", "stages": {"rl": {"method": "grpo", "limits": {"turns": 5}}}}
    values["stages"]["sft"] = {"method": "sft", "data": {"demonstrations": 4}}
    recipe = build_recipe(values)
    assert [stage.limits.turns for stage in recipe.stages.values()] == [5, 16] and recipe.evaluation.limits is None
    recipe = build_recipe({**values, "evaluation": {"limits": {"turns": 2}}, "rollouts": {"step_seconds": 3.0}})
    assert recipe.evaluation.limits == Limits(turns=2)
    assert [stage.rollouts.step_seconds for stage in recipe.stages.values()] == [3.0, 3.0]


def test_answers_that_fail_count_as_wrong_and_are_told() -> None:
    class Failing(SingleTurn):
        async def step(self, message: Any) -> Step:
            if message["content"] == "x":
                raise OSError("gone")
            return Step(done=True)

    tokenizer = byte_tokenizer()
    taskset = tasks.make("largest_number", num_heldout=4)
    taskset.environment = Failing
    right = [str(task.answer) for task in taskset.heldout]

    def reply(prompt: list[int]) -> str:
        asked = tokenizer.decode(prompt)
        place = next(k for k, task in enumerate(taskset.heldout) if task.prompt[-1]["content"] in asked)
        return right[place] if place < 3 else "x"

    def run(replies: Any, **options: Any) -> Any:
        sampler = ScriptedSampler(replies, tokenizer)
        return asyncio.run(evaluate(taskset, sampler, Renderer(tokenizer), PARAMS, **options))

    result = run(reply)
    assert (result.value, result.num, result.metrics["failed"]) == (0.75, 4, 0.25)
    assert "raised OSError: gone" in result.notes[0]
    with pytest.raises(UserError, match=r"the first trajectories failed, .*OSError: gone"):
        run(["x"])
    with pytest.raises(UserError, match="OSError: gone"):
        run(["x"], options=RolloutOptions(max_failures=2))


def test_a_reward_that_hangs_in_an_evaluation_ends_at_the_limit_of_the_stage() -> None:
    async def silent(task: Any, trajectory: Any) -> float:
        if trajectory.text == "1":
            await asyncio.sleep(3600)
        return 1.0

    options, began = RolloutOptions(reward_seconds=0.2), time.monotonic()
    result, _ = scored(["0", "1"], rubric=Rubric([silent]), num_tasks=2, options=options)
    assert result.value == 0.5 and time.monotonic() - began < SECONDS / 2


def test_of_two_answers_to_a_task_the_one_that_fails_counts_as_wrong() -> None:
    class Seeded(SingleTurn):
        def __init__(self, task: Any, seed: int) -> None:
            super().__init__(task)
            self.fails = seed % 2

        async def step(self, message: Any) -> Step:
            return Step(done=bool(1 // (1 - self.fails)))

    tokenizer = byte_tokenizer()
    taskset = tasks.make("largest_number", num_heldout=3)
    taskset.environment = Seeded
    taskset.rubric = Rubric([lambda task, trajectory: 1.0])
    sampler = ScriptedSampler(["0"], tokenizer)
    result = asyncio.run(evaluate(taskset, sampler, Renderer(tokenizer), PARAMS, samples_per_task=2))
    assert (result.value, result.metrics["failed"]) == (0.5, 0.5)

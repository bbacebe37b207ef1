"""Preference pairs from a model's own samples."""

from __future__ import annotations

import asyncio

import pytest
import tokenizers_in_code as made

from aurify.data.encode import encode_data
from aurify.data.preferences import sample_preferences
from aurify.environments.env import Observation, Step
from aurify.environments.single_turn import SingleTurn
from aurify.renderer import Renderer
from aurify.rewards.math import number_match
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import question
from aurify.types import SamplingParams, Task

TASKS = [Task(f"t/{n}", question(f"{n}?"), str(n)) for n in range(3)]


@pytest.fixture
def renderer():
    return Renderer(made.byte_level())


def sample(renderer, replies, tasks=TASKS, group_size=2, rubric=None, max_tokens=50):
    return asyncio.run(
        sample_preferences(
            tasks,
            SingleTurn,
            rubric or Rubric([number_match]),
            ScriptedSampler(replies, renderer.tokenizer),
            renderer,
            SamplingParams(max_tokens=max_tokens),
            group_size,
            0,
        )
    )


def test_best_against_worst_and_ties_are_counted(renderer):
    rows, num_ties = sample(renderer, ["is 0", "is 5", "is 1", "is 1", "is 0", "is 2"])
    assert num_ties == 1
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("is 0", "is 5"), ("is 2", "is 0")]
    assert rows[1]["prompt"] == TASKS[2].prompt
    assert rows[1]["rewards"] == [1.0, 0.0]
    data = encode_data(rows, renderer, "pairs")
    assert [datum.unit for datum in data] == [0, 0, 1, 1]


def test_a_reward_that_does_not_apply_makes_no_pair(renderer):
    def short_ones(task, trajectory):
        return float(trajectory.text) if len(trajectory.text) < 2 else None

    rows, num_ties = sample(renderer, ["300", "1", "2", "44"], TASKS[:1], 4, Rubric([short_ones]))
    assert num_ties == 0
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("2", "1")


def test_an_answer_that_was_cut_is_never_the_best(renderer):
    rows, num_ties = sample(renderer, ["0 and then some more", "7", "5 6 0 0 0 0 0 0"], TASKS[:1], 3, max_tokens=9)
    assert (rows, num_ties) == ([], 1)
    rows, _ = sample(renderer, ["0", "7 and then some more"], TASKS[:1], max_tokens=9)
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("0", "7 and then")


def test_every_sample_has_its_own_seed(renderer):
    seeds = []

    class Recording(ScriptedSampler):
        async def sample(self, prompt, params, n=1):
            seeds.append(params.seed)
            return await super().sample(prompt, params, n)

    sampler = Recording(["1"], renderer.tokenizer)
    arguments = (SingleTurn, Rubric([number_match]), sampler, renderer, SamplingParams(), 4)
    asyncio.run(sample_preferences(TASKS, *arguments, 7))
    assert len(set(seeds)) == 12
    asyncio.run(sample_preferences(TASKS, *arguments, 7))
    assert seeds[:12] == seeds[12:]


class TwoTurns(SingleTurn):
    """Asks a second time, and says so first."""

    async def start(self):
        return Observation([{"role": "system", "content": "he"}, *self.task.prompt])

    async def step(self, message):
        self.turns = getattr(self, "turns", 0) + 1
        return Step([{"role": "user", "content": "go on"}], done=self.turns == 2)


def test_two_turn_rollouts_stay_conversations_in_sampled_preferences(renderer):
    """They became one answer each, their turns joined by a newline."""
    sampler = ScriptedSampler(lambda prompt: replies.pop(0), renderer.tokenizer)
    replies = ["he", "she", "is 0", "is 5"]  # the first turns of both, then the second ones
    judge = Rubric([lambda task, trajectory: float("0" in trajectory.text)])
    rows, _ = asyncio.run(sample_preferences(TASKS[:1], TwoTurns, judge, sampler, renderer, SamplingParams(), 2, 0))
    [row] = rows
    assert row["prompt"] == [{"role": "system", "content": "he"}, *TASKS[0].prompt]
    assert [message["content"] for message in row["chosen"]] == ["he", "go on", "is 0"]
    assert [message["content"] for message in row["rejected"]] == ["she", "go on", "is 5"]
    chosen, rejected = encode_data(rows, renderer, "pairs")
    for datum, words in ((chosen, "he is 0"), (rejected, "she is 5")):
        trained = [token for token, weight in zip(datum.tokens, datum.weights, strict=True) if weight]
        said = renderer.tokenizer.decode(trained, skip_special_tokens=True)
        assert said.replace(" ", "") == words.replace(" ", ""), "every turn of the policy, and nothing else"


def test_what_fails_among_samples_is_left_out_and_told(renderer):
    class Failing(SingleTurn):
        async def step(self, message):
            if message["content"] == "is 5":
                raise OSError("gone")
            return Step(done=True)

    told = []
    rows, num_ties = asyncio.run(
        sample_preferences(
            TASKS[:1], Failing, Rubric([number_match]),
            ScriptedSampler(["is 0", "is 5", "is 1", "is 5"], renderer.tokenizer), renderer, SamplingParams(), 3, 0,
            tell=told.append,
        )
    )  # fmt: skip
    assert (rows[0]["chosen"], rows[0]["rejected"], num_ties) == ("is 0", "is 1", 0)
    assert len(told) == 1 and "environment 'Failing' raised OSError: gone" in told[0]

"""T7: completions that ran into a token limit are kept, masked or penalised, and the denominator follows."""

from __future__ import annotations

import asyncio

import pytest
import tokenizers_in_code as made

from aurify.environments.rollout import build_datum, rollout
from aurify.environments.single_turn import SingleTurn
from aurify.loops.online import choose_trained
from aurify.pipeline.recipe import OnlineStage, build_recipe
from aurify.renderer import Renderer
from aurify.rewards.combine import penalise_truncated_answer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import Group, SamplingParams, Task


def stage_with(truncated):
    stage = {"method": "grpo", "truncated": truncated}
    recipe = build_recipe({"model": "random:tiny", "task": "arithmetic", "stages": {"rl": stage}})
    found = recipe.stages["rl"]
    assert isinstance(found, OnlineStage)
    return found


@pytest.fixture
def group():
    task = Task("t", [{"role": "user", "content": "1+1?"}], "2")
    renderer = Renderer(made.byte_level())
    sampler = ScriptedSampler(["2", "1 2 3 4 5 6 7 8 9", "3"], renderer.tokenizer)

    async def play():
        params = SamplingParams(max_tokens=6)
        return [await rollout(task, SingleTurn(task), sampler, renderer, params) for _ in range(3)]

    trajectories = asyncio.run(play())
    for trajectory, reward in zip(trajectories, (1.0, 0.5, 0.0), strict=True):
        trajectory.reward = reward
    return Group(task, trajectories)


def data_of(group, advantages, stage):
    return [build_datum(group.trajectories[k], advantages[k]) for k in choose_trained(group, advantages, stage)]


def num_trained(data):
    return [sum(datum.weights) for datum in data]


def test_keep(group):
    assert [t.truncated for t in group.trajectories] == [False, True, False]
    assert num_trained(data_of(group, [1.0, 0.0, -1.0], stage_with("keep"))) == [2, 6, 2]


def test_mask(group):
    data = data_of(group, [1.0, 0.5, -1.0], stage_with("mask"))
    assert num_trained(data) == [2, 2]  # the denominator is the sum of these weights: nothing of the cut one counts
    assert [datum.advantages[0] for datum in data] == [1.0, -1.0]


def test_penalise(group):
    for trajectory in group.trajectories:
        penalise_truncated_answer(trajectory, 0.75)
    assert group.rewards == [1.0, -0.25, 0.0]
    assert [t.rewards for t in group.trajectories] == [{"truncated": 0}, {"truncated": -0.75}, {"truncated": 0}]
    assert num_trained(data_of(group, [1.0, -1.0, 0.0], stage_with("penalise"))) == [2, 6, 2]


def test_without_a_reward_nothing_is_trained_or_penalised(group):
    group.trajectories[1].reward = None
    penalise_truncated_answer(group.trajectories[1], 0.75)
    assert group.trajectories[1].reward is None
    assert num_trained(data_of(group, [1.0, 0.0, -1.0], stage_with("keep"))) == [2, 2]

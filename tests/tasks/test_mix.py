"""Several tasks in one stage: ratios, and to each its own environment, tools and rewards."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import tokenizers_in_code as made

import aurify
from aurify import registry, tasks
from aurify.algorithms.grpo import GRPO
from aurify.environments.hosting import environment_takes_seed, is_threaded_environment
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.player import Player
from aurify.environments.tool_use import ToolUse
from aurify.errors import UserError
from aurify.evaluation.evaluate import evaluate
from aurify.loops.ledger import rollout_metrics
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig
from aurify.pipeline.plan import name_stage_task
from aurify.pipeline.recipe import OnlineStage, build_recipe
from aurify.renderer import Renderer
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams

TWO = [{"name": "sorting", "ratio": 2, "num_heldout": 6}, {"name": "multiplication", "num_heldout": 6}]


class Seeded(MultiTurnEnvironment):
    def step(self, message: Any) -> aurify.Step:
        return aurify.Step(done=True, rewards={"seeded": float(self.seed is not None)})


@pytest.fixture
def seeded(monkeypatch):
    monkeypatch.setitem(registry.ENTRIES["environment"], "seeded_for_mix", Seeded)


def test_ratios_hold_in_every_stretch_and_ids_say_the_task():
    taskset = tasks.make("mix", tasks=TWO)
    stream = list(islice(taskset.train(3), 30))
    assert [Counter(t.part for t in stream[k : k + 3]) for k in range(0, 30, 3)] == [
        {"sorting": 2, "multiplication": 1}
    ] * 10
    assert all(task.id.startswith(f"{task.part}/") for task in stream) and len({t.id for t in stream}) == 30
    assert stream == list(islice(taskset.train(3), 30)) != list(islice(taskset.train(4), 30))
    assert Counter(task.part for task in taskset.heldout) == {"sorting": 6, "multiplication": 6}
    assert Counter(task.part for task in taskset.heldout[:3]) == {"sorting": 2, "multiplication": 1}


def test_a_recipe_takes_a_list():
    recipe = {"model": "random:tiny", "task": TWO, "stages": {"a": {"method": "grpo"}}}
    assert build_recipe(recipe).stages["a"].task == {"name": "mix", "tasks": TWO}
    recipe = {"model": "random:tiny", "stages": {"a": {"method": "grpo", "task": TWO}}}
    assert build_recipe(recipe).stages["a"].task == {"name": "mix", "tasks": TWO}


def test_each_task_has_its_own_environment_and_rewards(seeded):
    """One calls a tool, one has an environment that asks for a seed and a reward beside, one has neither."""
    entries = [
        {"name": "multiplication", "tools": ["calculator"]},
        {"name": "sorting", "environment": "seeded_for_mix"},
        {"name": "addition"},
    ]
    taskset = tasks.make("mix", tasks=entries)
    assert is_threaded_environment(taskset.environment) and environment_takes_seed(taskset.environment)
    kinds = {task.part: type(taskset.environment(task)) for task in islice(taskset.train(0), 6)}
    assert kinds["multiplication"] is ToolUse and kinds["sorting"] is Seeded
    renderer = Renderer(made.byte_level(), tools_as_text=True)
    tasks_of = {task.part: task for task in islice(taskset.train(0), 6)}
    answers = iter([str(tasks_of[part].answer) for part in ("multiplication", "sorting", "addition")])

    async def play() -> list[Any]:
        sampler = ScriptedSampler(lambda prompt: next(answers), renderer.tokenizer)
        player = Player(taskset.environment, sampler, renderer)
        result = []
        for part in ("multiplication", "sorting", "addition"):
            trajectory = await player.play(tasks_of[part], SamplingParams(max_tokens=60, seed=1))
            await taskset.rubric.score(tasks_of[part], [trajectory])
            result.append(trajectory)
        return result

    first, second, third = asyncio.run(play())
    judge = taskset.rubric.rewards[0].name
    assert [t.rewards[judge] for t in (first, second, third)] == [1.0, 1.0, 1.0]
    assert second.rewards["seeded"] == 1.0 and "seeded" not in first.rewards
    assert len(first.tools) == 1 and not third.tools


def test_metrics_are_told_for_each_task():
    taskset = tasks.make("mix", tasks=TWO)
    renderer = Renderer(made.byte_level())
    stage = OnlineStage(method="grpo", model=ModelConfig("random:tiny"), prompts_per_step=3, completions_per_prompt=2)
    sampler = ScriptedSampler(["12", "7"], renderer.tokenizer)
    rollouts = Rollouts(sampler, renderer, taskset, taskset.rubric, stage, seed=1)
    made_round = asyncio.run(rollouts.sample(0, GRPO(), None))  # type: ignore[arg-type]
    metrics = rollout_metrics(made_round, GRPO().advantages(made_round.filled), stage)
    assert metrics["ledger/groups_sorting"] == 2 and metrics["ledger/groups_multiplication"] == 1
    assert {"reward/sorting/mean", "reward/multiplication/mean", "rollout/sorting/length"} <= set(metrics)
    result = asyncio.run(evaluate(taskset, sampler, renderer, SamplingParams(max_tokens=10), num_tasks=6))
    values = [result.metrics[f"{part}/value"] for part in ("sorting", "multiplication")]
    assert result.value == pytest.approx((4 * values[0] + 2 * values[1]) / 6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "sorting"}], "write two or more tasks"),
        ([{"name": "sorting"}, {"name": "sorting"}], "two tasks are called 'sorting'; give each of them a `label`"),
        ([{"name": "sorting"}, {"ratio": 2}], r"task\[1\]: .* write for example"),
        ([{"name": "sorting"}, {"name": "addition", "ratio": 0}], r"task\[1\].ratio: 0; expected a number above 0"),
    ],
)
def test_what_cannot_be_mixed_is_named(entries, message):
    with pytest.raises(UserError, match=message):
        tasks.make("mix", tasks=entries)


def test_two_settings_of_one_task_go_by_their_labels():
    entries = [{"name": "sorting", "label": "easy"}, {"name": "sorting", "label": "hard"}]
    taskset = tasks.make("mix", tasks=entries)
    assert len({task.id for task in islice(taskset.train(0), 20)}) == 20


def test_the_plan_names_the_tasks():
    assert name_stage_task({"name": "mix", "tasks": TWO}) == "2 x sorting + 1 x multiplication"
    assert name_stage_task({"name": "sorting"}) == "sorting" and name_stage_task({}) == ""


def test_the_check_of_a_task_asks_the_reward_of_its_own_part(monkeypatch):
    asked: list[str] = []

    def strict(task: Any, trajectory: Any) -> float:
        return 1.0

    def check(task: Any) -> None:
        asked.append(task.part)
        raise ValueError("never")

    strict.check_task = check  # type: ignore[attr-defined]
    monkeypatch.setitem(registry.ENTRIES["reward"], "strict_for_mix", strict)
    taskset = tasks.make("mix", tasks=[{"name": "sorting"}, {"name": "addition", "reward": "strict_for_mix"}])
    known = {task.part: task for task in islice(taskset.train(0), 6)}
    taskset.rubric.check_tasks([known["sorting"]])
    with pytest.raises(UserError, match=r"task 'addition/.*reward 'answer': never"):
        taskset.rubric.check_tasks(known.values())
    assert asked == ["addition"]

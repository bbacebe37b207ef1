"""A run that stops because too much fails says so where a person looks: in events.log and in console.log. And what a
trajectory's requests carry so that the sampler can admit them in a fixed order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pipelines import run

from aurify import registry
from aurify.environments.env import Step
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.loops.rollouts import Rollouts
from aurify.models.model import ModelConfig
from aurify.models.tiny import byte_tokenizer
from aurify.pipeline.recipe import OnlineStage
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.sampler import request_order
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Task

TRIED = 2  # environments that are started before the first step


class Gone(SingleTurn):
    """Goes away when the recipe is checked."""

    num = 0

    async def start(self) -> Any:
        type(self).num += 1
        if self.num > TRIED:
            raise ConnectionError("the service is gone")
        return await super().start()


@pytest.mark.parametrize(
    ("options", "count"),
    [({"max_failures": 5}, "the first trajectories failed"), ({}, "the first trajectories failed")],
)
def test_a_run_that_stops_for_its_failures_says_why_in_events_log_and_console_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], count: str
) -> None:
    monkeypatch.setitem(registry.ENTRIES["environment"], "gone", Gone)
    monkeypatch.setattr(Gone, "num", 0)
    recipe = {
        "model": "random:tiny",
        "task": {"name": "sorting", "num_heldout": 4, "environment": "gone"},
        "evaluation": {"num_tasks": 0},
        "rollouts": options,
        "stages": {"rl": {"method": "grpo", "steps": 3, "prompts_per_step": 2, "completions_per_prompt": 4}},
    }
    with pytest.raises(UserError, match=count):
        run(recipe, tmp_path)
    for name in ("events.log", "console.log"):
        text = (tmp_path / "rl" / name).read_text()
        assert f"stopped: {count}" in text and "the service is gone" in text, name


class Later(SingleTurn):
    """Goes away after a while."""

    num = 0

    async def start(self) -> Any:
        type(self).num += 1
        if self.num > TRIED + 16:
            raise ConnectionError("the service is gone")
        return await super().start()


def test_a_run_that_stops_for_its_failures_leaves_a_checkpoint_and_goes_on_with_other_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENTRIES["environment"], "later", Later)
    grpo = {"method": "grpo", "steps": 3, "prompts_per_step": 2, "completions_per_prompt": 4}
    recipe: dict[str, Any] = {
        "model": "random:tiny",
        "task": {"name": "sorting", "num_heldout": 4, "environment": "later"},
        "evaluation": {"num_tasks": 0},
        "stages": {"rl": {**grpo, "checkpoint_every": 0, "sampling": {"max_tokens": 2}}},
    }
    with pytest.raises(UserError, match=r"the last 6 trajectories in a row failed, each .* the service is gone"):
        run({**recipe, "rollouts": {"max_failures": 6}}, tmp_path)
    assert [path.name for path in (tmp_path / "rl" / "checkpoints").iterdir()] != []
    Later.num = -100
    results = run({**recipe, "rollouts": {"step_seconds": 60.0}}, tmp_path)
    assert results["rl"]["status"] == "finished" and Later.num == -100 + TRIED + 8, "one step of three was left"


class TwoTurns(SingleTurn):
    turns = 0

    async def step(self, message: Any) -> Step:
        self.turns += 1
        return Step([{"role": "user", "content": "go on"}], done=self.turns == 2)


def test_requests_carry_the_step_the_task_the_place_and_the_turn_of_their_trajectory() -> None:
    seen: list[tuple[int, ...]] = []

    class Spy(ScriptedSampler):
        async def sample(self, *arguments: Any, **options: Any) -> Any:
            seen.append(request_order.get())
            return await super().sample(*arguments, **options)

    tokenizer, tasks = byte_tokenizer(), [Task(f"t{k}", question(f"say {k}"), str(k)) for k in range(2)]
    taskset = TaskSet("toy", lambda seed: iter(tasks), tasks, Rubric([lambda task, trajectory: 1.0]), TwoTurns)
    stage = OnlineStage(method="grpo", model=ModelConfig("random:tiny"), completions_per_prompt=2)
    rollouts = Rollouts(Spy(["a"], tokenizer), Renderer(tokenizer), taskset, taskset.rubric, stage, seed=1)
    asyncio.run(rollouts.play_groups(4, tasks))
    assert sorted(seen) == [(4, place, k, turn) for place in range(2) for k in range(2) for turn in range(2)]
    assert request_order.get() == ()


def test_held_out_tasks_are_played_with_the_turns_and_limits_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was always 16 turns. A number that was measured with other turns is not taken over."""
    from aurify.pipeline import measure

    seen: list[Any] = []
    plain = measure.evaluate

    async def spied(*arguments: Any, **options: Any) -> Any:
        seen.append((options["limits"].turns, options["options"].step_seconds))
        return await plain(*arguments, **options)

    monkeypatch.setattr(measure, "evaluate", spied)
    grpo = {"method": "grpo", "model": "@sft", "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2}
    recipe: dict[str, Any] = {
        "model": "random:tiny",
        "task": {"name": "sorting", "num_heldout": 4},
        "evaluation": {"num_tasks": 2, "sampling": {"max_tokens": 2, "temperature": 0.0}},
        "rollouts": {"step_seconds": 9.0},
        "stages": {
            "sft": {"method": "sft", "data": {"demonstrations": 4}, "steps": 1},
            "same": {**grpo, "sampling": {"max_tokens": 2}},
            "other": {**grpo, "sampling": {"max_tokens": 2}, "limits": {"turns": 3}},
        },
    }
    run(recipe, tmp_path)
    assert [turns for turns, _ in seen] == [16, 16, 16, 3, 3], "`same` knows what `sft` came to, `other` does not"
    assert {seconds for _, seconds in seen} == {9.0}

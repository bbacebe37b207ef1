"""One step of the online loop, part by part: what is sampled, judged, left out and trained."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from recorder import Recorder

from aurify import registry
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.rloo import RLOO
from aurify.engine.engine import Engine
from aurify.environments.env import Step
from aurify.environments.rollout import build_datum
from aurify.environments.single_turn import SingleTurn
from aurify.errors import UserError
from aurify.loops.ledger import rollout_metrics
from aurify.loops.online import choose_trained, learn, split_round_minibatches, train_online
from aurify.loops.progress import Checkpoints
from aurify.loops.replay import Buffer
from aurify.loops.rollouts import Rollouts, Round
from aurify.loops.task_stream import tasks_from
from aurify.models.model import ModelConfig, load_model
from aurify.pipeline.recipe import OnlineStage, ReplayOptions, is_online_method
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Datum, Group, Task, Trajectory

TASKS = [Task(f"t{k}", question(f"say {k}"), str(k)) for k in range(3)]


def stage(**options: Any) -> OnlineStage:
    small = {"steps": 2, "prompts_per_step": 2, "completions_per_prompt": 4}
    return OnlineStage(method="grpo", model=ModelConfig("random:tiny"), **small | options)


def contains(task: Task, trajectory: Trajectory) -> float:
    return float(str(task.answer) in trajectory.text)


def rollouts(
    replies: Any, options: OnlineStage, reward: Any = contains, dtype: str = "float32"
) -> tuple[Rollouts, Engine]:
    engine = Engine(load_model(ModelConfig("random:tiny", dtype=dtype)))
    taskset = TaskSet("toy", lambda seed: iter(TASKS), TASKS, Rubric([reward]))
    sampler = ScriptedSampler(replies, engine.tokenizer)
    return Rollouts(sampler, Renderer(engine.tokenizer), taskset, taskset.rubric, options, seed=1), engine


def round_of(replies: Any, options: OnlineStage, reward: Any = contains) -> tuple[Round, Rollouts, Engine]:
    sampled, engine = rollouts(replies, options, reward)
    return asyncio.run(sampled.sample(0, GRPO(), engine)), sampled, engine


def test_groups_belong_to_their_tasks_and_are_scored():
    made, _, _ = round_of(["0", "1"], stage())
    assert [group.task.id for group in made.groups] == ["t0", "t1"]
    assert [group.rewards for group in made.groups] == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_seeds_depend_on_step_task_and_place_alone():
    seen: list[int | None] = []

    class Spy(ScriptedSampler):
        async def sample(self, prompt, params, n=1):
            seen.append(params.seed)
            return await super().sample(prompt, params, n)

    sampled, engine = rollouts(["0"], stage())
    spied = Rollouts(Spy(["0"], engine.tokenizer), sampled.renderer, sampled.taskset, sampled.rubric, sampled.stage, 1)
    for step in (0, 1, 0):
        asyncio.run(spied.play_groups(step, TASKS[:2]))
    first, second, again = seen[:8], seen[8:16], seen[16:]
    assert len(set(first + second)) == 16 and first == again


@pytest.mark.parametrize(
    ("how", "rewards", "num"), [("keep", [1, 0], 2), ("mask", [1, 0], 1), ("penalise", [0.5, 0], 2)]
)
def test_truncated_completions(how, rewards, num):
    options = stage(truncated=how, truncation_penalty=0.5, completions_per_prompt=2, prompts_per_step=1)
    made, _, _ = round_of(["0" * 300, "no"], options)  # the first one never ends
    [group] = made.groups
    assert [trajectory.truncated for trajectory in group.trajectories] == [True, False]
    assert group.rewards == rewards
    assert len(choose_trained(group, [1.0, -1.0], options)) == num
    metrics = rollout_metrics(made, [[1.0, -1.0]], options)
    assert metrics["rollout/truncated"] == 0.5
    assert metrics["ledger/trajectories_masked"] == (how == "mask")
    assert metrics.get("reward/truncated") == (-0.25 if how == "penalise" else None), "the mean of -.5 and 0"
    assert metrics["reward/contains"] == 0.5, "the task's own reward is told unchanged"


def test_groups_without_spread_and_answers_without_reward_are_left_out():
    def moody(task: Task, trajectory: Trajectory) -> float | None:
        if trajectory.text == "fail":
            raise RuntimeError("bad mood")
        return {"nan": float("nan"), "none": None}.get(trajectory.text, float(trajectory.text == "0"))

    made, sampled, engine = round_of(["0", "fail", "nan", "none", "1", "1", "1", "1"], stage(), moody)
    seen: list[Datum] = []
    original = engine.forward_backward
    engine.forward_backward = lambda data, *rest, **options: seen.extend(data) or original(data, *rest, **options)  # type: ignore[method-assign]
    metrics = learn(engine, GRPO(), made, sampled, 0)
    assert made.groups[0].rewards == [1.0, None, None, None]
    assert not seen and "loss" not in metrics, "one valid reward is no spread"
    assert engine.version == 0
    assert metrics["ledger/groups_without_spread"] == 2
    assert metrics["ledger/trajectories_without_reward"] == 3
    assert metrics["ledger/rewards_failed"] == 2

    made, sampled, _ = round_of(["0", "1", "none", "fail", "1", "1", "1", "1"], stage(), moody)
    metrics = learn(engine, GRPO(), made, sampled, 1)
    assert [datum.advantages[-1] > 0 for datum in seen] == [True, False]
    assert metrics["ledger/groups_without_spread"] == 1 and engine.version == 1
    assert metrics["ledger/tokens_trained"] == 4, "two answers of one letter and an end token"


def test_with_a_kl_in_the_reward_equal_rewards_teach_by_their_distance_from_the_reference():
    made, sampled, engine = round_of(["0", "00", "000", "0000"], stage(prompts_per_step=1))
    assert made.groups[0].rewards == [1.0] * 4
    engine.keep_reference()
    with torch.no_grad():
        for weight in engine.module.parameters():
            weight.mul_(1.5)
    data = [build_datum(trajectory) for trajectory in made.groups[0].trajectories]
    known = zip(engine.logprobs(data), engine.logprobs(data, reference=True), strict=True)
    costs = [
        sum(o - r for w, o, r in zip(datum.weights, old, ref, strict=True) if w)
        for datum, (old, ref) in zip(data, known, strict=True)
    ]
    seen: list[Datum] = []
    original = engine.forward_backward
    engine.forward_backward = lambda data, *rest, **options: seen.extend(data) or original(data, *rest, **options)  # type: ignore[method-assign]
    metrics = learn(engine, RLOO(reward_kl_coef=2.0), made, sampled, 0)
    assert max(costs) - min(costs) > 0.1, "with the same cost for all there is nothing to see"
    expected = [-2.0 * (cost - (sum(costs) - cost) / 3) for cost in costs]
    assert [datum.advantages[-1] for datum in seen] == pytest.approx(expected, abs=1e-4)
    assert metrics["rollout/kl"] == pytest.approx(sum(costs) / 4, abs=1e-4) and engine.version == 1


def loop(sampled: Rollouts, engine: Engine, folder: Path) -> Recorder:
    recorder = Recorder()
    checkpoints = Checkpoints(folder, every=0, keep=1, identity="x")
    train_online(engine, GRPO(), sampled, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    return recorder


def test_a_run_without_any_spread_counts_its_steps_and_changes_nothing(tmp_path):
    sampled, engine = rollouts(["nothing"], stage())
    recorder = loop(sampled, engine, tmp_path)
    assert [row["step"] for row in recorder.rows] == [1, 2]
    assert [row["ledger/groups_without_spread"] for row in recorder.rows] == [2, 2]
    assert engine.version == 0


def test_a_reward_in_trls_form_learns_how_far_training_is_and_logs_a_metric(tmp_path):
    seen = []

    def curriculum(completions, trainer_state, log_metric, **kwargs):
        seen.append((trainer_state.global_step, trainer_state.max_steps))
        log_metric("seen", len(completions))
        return [0.0] * len(completions)

    sampled, engine = rollouts(["nothing"], stage(), curriculum)
    recorder = loop(sampled, engine, tmp_path)
    assert seen == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [row["rollout/seen"] for row in recorder.rows] == [4, 4]


def test_several_updates_a_round_start_at_ratio_one(tmp_path, dtype):
    options = stage(steps=1, prompts_per_step=3, num_minibatches=3, num_epochs=2)
    sampled, engine = rollouts(["0", "1", "2", "3"], options, dtype=dtype)
    recorder = loop(sampled, engine, tmp_path)
    assert engine.version == 6 and sampled.sampler.version == 6
    assert recorder.rows[0]["loss/ratio"] == pytest.approx(1, abs=0.05) and recorder.rows[0]["loss/ratio"] != 1
    assert recorder.rows[0]["ledger/tokens_trained"] == 2 * 3 * 4 * 2, "two epochs of three groups of four answers"


def test_groups_stay_whole_in_minibatches():
    groups = [[Datum([1, number], [0.0, 1.0])] * 2 for number in range(5)]
    parts = list(split_round_minibatches(groups, stage(num_minibatches=2, num_epochs=2), seed=3))
    assert [len(part) for part in parts] == [6, 4, 6, 4]
    for epoch in (parts[:2], parts[2:]):
        assert sorted(datum.tokens[1] for part in epoch for datum in part) == sorted([*range(5)] * 2)
        assert all(part[k].tokens == part[k + 1].tokens for part in epoch for k in range(0, len(part), 2))
    assert parts[:2] != parts[2:]


def test_tasks_go_round_and_can_be_entered_anywhere():
    taskset = TaskSet("toy", lambda seed: iter(TASKS if seed % 2 else TASKS[::-1]), TASKS, Rubric([contains]))
    straight = [task.id for task in islice(tasks_from(taskset, 0, 0), 20)]
    assert [task.id for task in islice(tasks_from(taskset, 0, 7), 13)] == straight[7:]
    assert all(set(straight[k : k + 3]) == {"t0", "t1", "t2"} for k in range(0, 18, 3))
    empty = TaskSet("empty", lambda seed: iter([]), TASKS, Rubric([contains]))
    with pytest.raises(UserError, match="no training task"):
        next(tasks_from(empty, 0, 0))


def test_an_error_of_a_rollout_names_its_task():
    class Refusing(ScriptedSampler):
        async def sample(self, prompt, params, n=1):
            raise UserError("the prompt has 9999 tokens")

    sampled, engine = rollouts(["0"], stage())
    refused = Rollouts(
        Refusing([], engine.tokenizer), sampled.renderer, sampled.taskset, sampled.rubric, sampled.stage, 1
    )
    with pytest.raises(UserError, match=r"the first trajectories failed, .* task 't\d': the prompt has 9999 tokens"):
        asyncio.run(refused.sample(0, GRPO(), engine))


def test_a_group_of_which_everything_failed_is_counted_and_retires_no_question_of_the_buffer():
    """All of none are right: that is no reason to drop a question."""
    sampled, engine = rollouts(["0"], stage())
    buffer = Buffer(ReplayOptions(), 4)
    buffer.started = True
    sampled = replace(sampled, buffer=buffer)
    metrics = learn(engine, GRPO(), Round([Group(TASKS[0], [])]), sampled, 0)
    assert not buffer.retired and metrics["ledger/groups_failed"] == 1
    assert metrics["ledger/trajectories"] == 0 and engine.version == 0


@pytest.mark.parametrize("name", [name for name in registry.list_registered("algorithm") if is_online_method(name)])
def test_every_online_method_takes_a_step_of_which_nothing_is_left_and_groups_of_one(name):
    options = {"cispo": {"max_ratio": 5.0}, "dr_grpo": {"constant_length": 10}}
    algorithm = registry.get_entry("algorithm", name)(**options.get(name, {}))
    assert algorithm.advantages([]) == []
    one = Trajectory([], [], 0, rewards={"a": 1.0}, reward=1.0)
    assert [len(row) for row in algorithm.advantages([Group(TASKS[0], [one], {"a": 1.0})])] == [1]


class Failing(SingleTurn):
    """Fails at its second turn, at the first attempt or at all of them."""

    attempts: ClassVar[Counter[str]] = Counter()
    failing = 1

    async def step(self, message: Any) -> Step:
        self.attempts[self.task.id] += 1
        if self.attempts[self.task.id] <= self.failing:
            raise ConnectionError("the service is gone")
        return Step(done=True)


@pytest.mark.parametrize(("failing", "kept"), [(1, 2), (3, 1)], ids=["tried again", "dropped"])
def test_tokens_of_attempts_that_failed_are_counted(failing, kept, monkeypatch):
    """Each answer has two tokens: a letter and the end."""
    monkeypatch.setattr(Failing, "attempts", Counter())
    monkeypatch.setattr(Failing, "failing", failing)
    sampled, engine = rollouts(["0", "1"], stage(prompts_per_step=1, completions_per_prompt=2))
    taskset = replace(sampled.taskset, environment=Failing)
    made = asyncio.run(replace(sampled, taskset=taskset).sample(0, GRPO(), engine))
    metrics = learn(engine, GRPO(), made, sampled, 0)
    assert len(made.groups[0].trajectories) == kept
    num_attempts = kept + failing
    assert metrics["ledger/tokens_failed"] == 2 * failing
    assert metrics["ledger/tokens_sampled"] == 2 * num_attempts

"""Guidance in groups: whose answers stand there, that a trace never reaches the sampler, and how prefixes are cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from aurify import tasks
from aurify.environments.rollout import build_datum
from aurify.errors import UserError
from aurify.loops.guidance import guidance_prefix_share, open_guide
from aurify.loops.ledger import rollout_metrics
from aurify.loops.rollouts import Rollouts, Round
from aurify.models.model import ModelConfig, tiny_model
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import GuidanceOptions, OnlineStage, PrefixOptions, build_recipe
from aurify.renderer import Renderer
from aurify.rewards.rubric import Rubric
from aurify.samplers.scripted import ScriptedSampler
from aurify.tasks.taskset import TaskSet, question
from aurify.types import Group, Task, Trajectory

TASKS = [Task(f"t{k}", question(f"say {k}"), f"it is {k}") for k in range(3)]
TOKENIZER = tiny_model().tokenizer
TRACE = "it is 0"


def contains(task: Task, trajectory: Trajectory) -> float:
    return float(str(task.answer) in trajectory.text)


def rollouts(replies: Any, **guidance: Any) -> Rollouts:
    stage = OnlineStage(
        method="luffy",
        model=ModelConfig("random:tiny"),
        steps=10,
        completions_per_prompt=4,
        guidance=GuidanceOptions(**{"demonstrations": True} | guidance),
    )
    taskset = TaskSet("toy", lambda seed: iter(TASKS), TASKS, Rubric([contains]))
    renderer = Renderer(TOKENIZER)
    guide = asyncio.run(open_guide(stage, taskset, renderer, 1000))
    return Rollouts(ScriptedSampler(replies, TOKENIZER), renderer, taskset, taskset.rubric, stage, 1, guide=guide)


def group_of(sampled: Rollouts, step: int = 0) -> Group:
    return asyncio.run(sampled.play_group(step, 0, TASKS[0]))[0]


def sources(group: Group) -> dict[str, int]:
    return dict(Counter(trajectory.source for trajectory in group.trajectories))


def test_one_of_n_is_the_guides_and_the_sampler_never_hears_of_it():
    """T17"""
    sampled = rollouts(["no"], num_off=1)
    group = group_of(sampled)
    assert sources(group) == {"policy": 3, "guidance": 1}
    assert len(sampled.sampler.prompts) == 3, "three prompts of the policy's own"  # type: ignore[attr-defined]
    assert group.rewards == [0, 0, 0, 1], "the trace is judged as any answer"
    guided = group.trajectories[-1]
    assert guided.text == TRACE and not guided.truncated
    assert guided.segments[1].tokens[-1] == TOKENIZER.eos_token_id
    metrics = rollout_metrics(Round([group]), [[-0.25, -0.25, -0.25, 0.75]], sampled.stage)
    assert metrics["reward/mean"] == 0, "what the policy earns, not what its guide does"
    assert metrics["guidance/reward"] == 1 and metrics["guidance/trajectories"] == 1
    assert metrics["ledger/tokens_guided"] == len(TRACE) + 1
    assert metrics["ledger/tokens_sampled"] == 3 * 3


def test_only_where_all_fail():
    sampled = rollouts(["no"], replace="all_failed")
    made = asyncio.run(sampled.play_groups(0, TASKS[:1]))
    [group], [discarded] = made.groups, made.discarded
    assert sources(group) == {"policy": 3, "guidance": 1} and group.rewards == [0, 0, 0, 1]
    assert len(discarded.trajectories) == 1
    metrics = rollout_metrics(made, [[1.0] * 4], sampled.stage)
    assert metrics["ledger/tokens_sampled"] == 4 * 3 and metrics["ledger/tokens_discarded"] == 3

    sampled = rollouts(["no", "it is 0", "no", "no"], replace="all_failed")
    made = asyncio.run(sampled.play_groups(0, TASKS[:1]))
    [group] = made.groups
    assert sources(group) == {"policy": 4} and group.rewards == [0, 1, 0, 0] and not made.discarded


def test_a_task_without_a_trace_gets_a_whole_group_of_its_own(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text('{"prompt": "say 9", "traces": ["it is 9", "oh, it is 9"], "answer": "it is 9"}\n')
    sampled = rollouts(["no"], demonstrations=False, path=str(path), num_off=2)
    group = group_of(sampled)
    assert sources(group) == {"policy": 4}
    assert rollout_metrics(Round([group]), [[0.0] * 4], sampled.stage)["ledger/groups_without_guidance"] == 1
    known = Task("t9", question("say 9"), "it is 9")
    group, _ = asyncio.run(sampled.play_group(0, 0, known))
    assert sources(group) == {"policy": 2, "guidance": 2}
    assert {t.text for t in group.trajectories[2:]} == {"it is 9", "oh, it is 9"}, "different ones"


def test_demonstrations_that_are_too_long_are_not_used():
    assert sources(group_of(rollouts(["no"], max_tokens=len(TRACE)))) == {"policy": 4}
    assert sources(group_of(rollouts(["no"], max_tokens=len(TRACE) + 1))) == {"policy": 3, "guidance": 1}


def test_the_policy_goes_on_from_a_prefix():
    sampled = rollouts([" 0"], num_off=2, prefix=PrefixOptions(schedule="fixed", low=0.0, high=0.7))
    group = group_of(sampled)
    assert sources(group) == {"policy": 3, "guidance": 1}, "a prefix of length 0 is no guidance"
    guided = group.trajectories[-1]
    assert [segment.origin for segment in guided.segments] == ["prompt", "guidance", "policy"]
    assert guided.text == "it is 0" and guided.reward == 1, "5 of 8 tokens, and what the policy made of them"
    prompt = sampled.renderer.prompt(TASKS[0].prompt)
    assert sampled.sampler.prompts[-1] == [*prompt, *guided.segments[1].tokens]  # type: ignore[attr-defined]
    datum = build_datum(guided, 1.0)
    assert datum.source == "policy" and datum.guided is not None
    assert datum.guided[len(prompt) :] == [True] * 5 + [False] * 3
    assert datum.weights[len(prompt) :] == [1.0] * 8
    assert datum.logprobs is not None and datum.logprobs[len(prompt) :] == [0.0] * 5 + [-1.0] * 3


def test_schedules():
    def shares(schedule: str, step: int, total: int = 10) -> list[float]:
        options = PrefixOptions(schedule=schedule, low=0.0, high=0.8)  # type: ignore[arg-type]
        return [guidance_prefix_share(options, index, 4, step, total) for index in range(4)]

    assert shares("fixed", 3) == pytest.approx([0, 0.8 / 3, 1.6 / 3, 0.8])
    assert set(shares("linear", 0)) == {0.8} and shares("linear", 5)[0] == pytest.approx(0.4)


def test_the_linear_schedule_ends_at_low():
    options = PrefixOptions(schedule="linear", low=0.2, high=0.8)
    shares = [guidance_prefix_share(options, 0, 1, step, 10) for step in (0, 5, 10)]
    assert shares == pytest.approx([0.8, 0.5, 0.2])


@pytest.mark.parametrize(("success", "guided"), [(1.0, 1), (0.4, 0)])
def test_all_failed_looks_at_the_success_threshold(success, guided):
    """The policy's own earn .5: failures with success 1, and no failures with .4."""
    sampled = rollouts(["half"], replace="all_failed", success=success)
    rubric = Rubric([lambda task, trajectory: {"half": 0.5}.get(trajectory.text, 1.0)])
    group = group_of(replace(sampled, rubric=rubric))
    assert sources(group).get("guidance", 0) == guided


def test_what_is_given_depends_on_the_seed_alone(tmp_path):
    path = tmp_path / "traces.jsonl"
    traces = ", ".join(f'"{"oh, " * number}it is 9"' for number in range(8))
    path.write_text(f'{{"prompt": "say 9", "traces": [{traces}], "answer": "it is 9"}}\n')
    known = Task("t9", question("say 9"), "it is 9")
    guide = rollouts(["no"], demonstrations=False, path=str(path)).guide
    assert guide is not None
    lengths = [[len(given.tokens) for given in guide.beginnings(known, 3, seed)] for seed in range(30)]
    assert lengths == [[len(given.tokens) for given in guide.beginnings(known, 3, seed)] for seed in range(30)]
    assert len({length for [length] in lengths}) > 3


RECIPE = {"model": "random:tiny", "task": "largest_number", "stages": {"rl": {"method": "luffy"}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": {}}, "set one of path"),
        ({"guidance": {"demonstrations": True, "num_off": 8}}, "leaves none for the policy's own"),
        ({"guidance": {"demonstrations": True, "num_off": 7}, "replay": {}}, "take 8"),
        ({"guidance": {"path": "no.jsonl"}}, "guidance.path: there is no file"),
        ({"guidance": {"demonstrations": True, "replace": "all_failed", "prefix": {}}}, "does not go with all_failed"),
        ({"guidance": {"demonstrations": True, "prefix": {"low": 0.9}}}, "must be in"),
        (
            {"guidance": {"demonstrations": True, "prefix": {}}, "algorithm": {"sft_coef": 1.0}},
            "sft_coef",
        ),
        ({"replay": {"share": 0}}, "share"),
        ({"teacher": "random:tiny"}, "luffy asks no teacher"),
        ({"dynamic_sampling": -1}, "dynamic_sampling"),
        ({}, "luffy without guidance is GRPO: set guidance"),
    ],
)
def test_mistakes_are_found_before_anything_runs(options, message):
    with pytest.raises(UserError, match=message):
        check_recipe(build_recipe({**RECIPE, "stages": {"rl": {"method": "luffy", **options}}}))


def test_late_guidance_has_seeds_of_its_own_for_every_step_task_and_place() -> None:
    """They were all 0, so that turns after a trace shared random numbers over tasks and steps."""
    sampled = rollouts(["no"], replace="all_failed", num_off=2)
    seen: list[int] = []
    play = sampled.player.play

    async def spied(task: Task, params: Any, **options: Any) -> Any:
        if options["guidance"]:
            seen.append(params.seed)
        return await play(task, params, **options)

    sampled.player.play = spied  # type: ignore[method-assign]
    for step in (0, 1, 0):
        for place, task in enumerate(TASKS):
            asyncio.run(sampled.play_group(step, place, task))
    first, second, again = seen[:3], seen[3:6], seen[6:]
    assert len({*first, *second}) == 6 and 0 not in seen and first == again


def test_a_guide_stands_in_for_the_policys_own_where_some_of_them_failed() -> None:
    sampled = rollouts(["no"], replace="all_failed")
    play, calls = sampled.player.play, iter(range(100))

    async def failing(task: Task, params: Any, **options: Any) -> Any:
        return None if next(calls) < 2 else await play(task, params, **options)

    sampled.player.play = failing  # type: ignore[method-assign]
    group, replaced = asyncio.run(sampled.play_group(0, 0, TASKS[0]))
    assert sources(group) == {"policy": 2, "guidance": 1}, "there was room: nothing had to go"
    assert not replaced


def test_a_metric_is_a_mean_over_the_answers_that_gave_it():
    """An environment says by `counts` which metrics begin at 0."""
    told = [
        Trajectory([], [], 0, metrics={"searches": 3.0, "tries": 2.0}),
        Trajectory([], [], 0, metrics={"searches": 0.0}),
    ]
    metrics = rollout_metrics(Round([Group(TASKS[0], told)]), [[0.0, 0.0]], rollouts(["no"]).stage)
    assert metrics["rollout/searches"] == 1.5 and metrics["rollout/tries"] == 2.0


def test_a_trace_with_calls_of_a_tool_trains_the_calls_and_not_their_results():
    taskset = tasks.make("multiplication", digits=2, tools=["calculator"])
    task, renderer = taskset.heldout[0], Renderer(TOKENIZER, tools_as_text=True)
    stage = OnlineStage(
        method="luffy",
        model=ModelConfig("random:tiny"),
        completions_per_prompt=2,
        guidance=GuidanceOptions(demonstrations=True),
    )
    guide = asyncio.run(open_guide(stage, taskset, renderer, 4000))
    sampled = Rollouts(ScriptedSampler(["no"], TOKENIZER), renderer, taskset, taskset.rubric, stage, 1, guide=guide)
    group = asyncio.run(sampled.play_group(0, 0, task))[0]
    assert sources(group) == {"policy": 1, "guidance": 1} and group.rewards == [0, 1]
    trajectory = group.trajectories[-1]
    assert [s.origin for s in trajectory.segments] == ["prompt", "guidance", "environment", "guidance"]
    assert trajectory.segments[0].tokens == sampled.sampler.prompts[0]  # type: ignore[attr-defined]
    call, result, answer = (TOKENIZER.decode(segment.tokens) for segment in trajectory.segments[1:])
    assert "<tool_call>" in call and "tool_response" in result and answer.startswith(task.prompt[-1]["content"][8:10])
    assert [message["role"] for message in trajectory.completion] == ["assistant", "tool", "assistant"]

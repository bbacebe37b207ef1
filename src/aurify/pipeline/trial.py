"""Plays the first task of a stage for real (of each of several that are mixed), with a text that is no answer instead
of the model's, and has the rewards judge it. What an environment, a template or a reward cannot do is seen here, and
not after hours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from aurify.environments.hosting import host_environment
from aurify.environments.rollout import build_data, observe_environment, rollout
from aurify.environments.single_turn import SingleTurn
from aurify.loops.interrupt import run_loop_async
from aurify.loops.units import join_rollout_rows
from aurify.rewards.trial import try_rewards
from aurify.samplers.scripted import ScriptedSampler
from aurify.types import Datum, SamplingParams, Task, Trajectory

if TYPE_CHECKING:
    from aurify.pipeline.recipe import OfflineStage, OnlineStage
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet

TRIED_TURNS = 3  # of an environment
STAND_IN = "I do not know."
MAX_TRIED = 1000  # training tasks, of a set without end


@dataclass(frozen=True)
class Trial:
    """What came of it, to be looked at."""

    datum: Datum
    notes: Sequence[str] = ()
    cautions: Sequence[str] = ()  # of rewards


def try_stage_tasks(
    taskset: TaskSet, options: OfflineStage | OnlineStage, renderer: Renderer, max_context: int, seed: int
) -> Trial:
    """taskset: without the tasks whose prompts are too long."""
    return run_loop_async(play_and_judge_trial(taskset, options, renderer, max_context, seed))


async def play_and_judge_trial(
    taskset: TaskSet, options: OfflineStage | OnlineStage, renderer: Renderer, max_context: int, seed: int
) -> Trial:
    tasks: dict[str, Task] = {}  # the first of each part
    parts = {task.part for task in taskset.heldout}
    for task in chain(islice(taskset.train(seed), MAX_TRIED), taskset.heldout):
        tasks.setdefault(task.part, task)
        if len(tasks) >= len(parts):
            break
    played = {
        part: await play_trial_task(taskset, task, options, renderer, max_context) for part, task in tasks.items()
    }
    trial = next(iter(played.values()))[1]
    notes = dict.fromkeys(note for _, each in played.values() for note in each.notes)
    trial = replace(trial, notes=list(notes))

    def answer(task: Task) -> Trajectory:
        return replace(played[task.part][0], rewards={}, metrics={}, extra={})

    every = chain(tasks.values(), taskset.heldout, taskset.tasks or islice(taskset.train(seed), MAX_TRIED))
    alone = taskset.environment is SingleTurn
    return replace(trial, cautions=await try_rewards(taskset.rubric, every, answer, alone=alone))


async def play_trial_task(
    taskset: TaskSet, task: Task, options: OfflineStage | OnlineStage, renderer: Renderer, max_context: int
) -> tuple[Trajectory, Trial]:
    """Starts the environment of a task, once to look and once to play some turns."""
    seconds, history, limits = options.rollouts.step_seconds, options.rollouts.history, options.limits
    async with host_environment(taskset.environment, task, seconds=seconds) as environment:
        try:
            first = await observe_environment(environment)
        except Exception:
            with suppress(Exception):
                await environment.close()
            raise
        await environment.close()
    single = type(environment.inner) is SingleTurn
    tokens = renderer.prompt(first.messages, first.tools)
    if not single:
        renderer.check_turns(first.messages, first.tools)
    sampler = ScriptedSampler(lambda prompt: renderer.reply(prompt, STAND_IN), renderer.tokenizer)
    async with host_environment(taskset.environment, task, seconds=seconds) as environment:
        trajectory = await rollout(
            task,
            environment,
            sampler,
            renderer,
            SamplingParams(max_tokens=10**6),
            max_context=max_context,
            limits=replace(limits, turns=min(limits.turns, TRIED_TURNS)),
            history=history,
        )
    if single:
        return trajectory, Trial(Datum(tokens, [0.0] * len(tokens)), renderer.notes(first.messages))
    notes = renderer.notes(first.messages, first.tools, history=history if limits.turns > 1 else None)
    tried = f"the environment was started and played; each answer was {STAND_IN!r} ({len(sampler.prompts)} in all)"
    return trajectory, Trial(join_rollout_rows(build_data(trajectory, unit=0)), [tried, *notes])

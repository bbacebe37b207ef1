"""Numbers on data that training never sees: task accuracy by sampling, pair accuracy, the loss of held-out rows."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from aurify.environments.player import Player, RolloutOptions
from aurify.environments.rollout import NO_LIMITS, Limits
from aurify.errors import UserError
from aurify.rewards.rubric import Rubric
from aurify.types import Datum, Group, Metrics, SamplingParams, Task

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet

CHUNK = 64  # data in one call of the engine


class Judge(Protocol):
    """What pair accuracy and loss need of an engine."""

    def logprobs(self, data: Sequence[Datum]) -> list[list[float]]: ...

    def scores(self, data: Sequence[Datum]) -> list[float]: ...


@dataclass(frozen=True)
class Evaluation:
    """accuracy: the mean over held-out tasks of the rubric's first reward, the one that judges the answer; where it
    does not apply, the answer counts as wrong, and so does one that failed twice. error: standard error over tasks."""

    accuracy: float
    error: float
    num_tasks: int
    metrics: Metrics = field(default_factory=dict)
    groups: Sequence[Group] = ()  # the transcripts
    notes: Sequence[str] = ()  # what went wrong, and was counted

    def record(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "error": self.error, "num_tasks": self.num_tasks, **self.metrics}


async def evaluate(
    taskset: TaskSet,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    *,
    num_tasks: int | None = None,
    samples_per_task: int = 1,
    seed: int = 0,
    max_context: int | None = None,
    limits: Limits = NO_LIMITS,
    options: RolloutOptions | None = None,
) -> Evaluation:
    """Answers to the first `num_tasks` held-out tasks (None: all), judged by the task's own rubric."""
    tasks = list(taskset.heldout)[:num_tasks]
    if not tasks:
        raise UserError(f"task {taskset.name!r} has no held-out tasks to evaluate on")
    taskset.rubric.check_tasks(tasks)

    rubric = taskset.rubric if options is None else Rubric(taskset.rubric.rewards, options.reward_seconds)
    player = Player(taskset.environment, sampler, renderer, options, max_context=max_context, limits=limits)

    async def answers(place: int, task: Task) -> Group:
        seeds = [(seed * 1_000_003 + place) * 1_000 + k for k in range(samples_per_task)]
        played = await asyncio.gather(
            *(player.play(task, replace(params, seed=s), order=(place, k)) for k, s in enumerate(seeds))
        )
        trajectories = [trajectory for trajectory in played if trajectory is not None]
        await rubric.score(task, trajectories)
        return Group(task, trajectories)

    groups = await asyncio.gather(*(answers(place, task) for place, task in enumerate(tasks)))
    if not player.num_ended:
        raise player.too_many()
    return replace(summary(groups, taskset.rubric.rewards[0].name, samples_per_task), notes=player.take_lines())


def summary(groups: Sequence[Group], answer_reward: str, samples_per_task: int) -> Evaluation:
    """Tasks weigh the same, however many answers each has. A group lacks those that failed."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    by_task = [
        math.fsum(t.rewards.get(answer_reward) or 0.0 for t in group.trajectories) / samples_per_task
        for group in groups
    ]
    num_failed = samples_per_task * len(groups) - len(trajectories)
    rewards = [t.reward for t in trajectories if t.reward is not None]
    metrics = {
        "length": statistics.fmean(t.num_policy_tokens for t in trajectories),
        "truncated": statistics.fmean(t.truncated for t in trajectories),
    }
    if num_failed:
        metrics["failed"] = num_failed / (samples_per_task * len(groups))
    if rewards:
        metrics["reward"] = statistics.fmean(rewards)
    error = statistics.stdev(by_task) / math.sqrt(len(by_task)) if len(by_task) > 1 else 0.0
    return Evaluation(statistics.fmean(by_task), error, len(groups), metrics, groups)


def pair_accuracy(values: Sequence[float]) -> float:
    """Share of pairs (chosen, rejected, chosen, ...) whose chosen one has the larger value. A tie counts as wrong."""
    if not values or len(values) % 2:
        raise ValueError(f"pair accuracy needs pairs; there are {len(values)} values")
    return statistics.fmean(chosen > rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True))


def scores_of(judge: Judge, data: Sequence[Datum]) -> list[float]:
    return [score for part in chunks(data) for score in judge.scores(part)]


def scored_pair_accuracy(judge: Judge, pairs: Sequence[Datum]) -> float:
    """How often a reward model prefers the chosen completion."""
    return pair_accuracy(scores_of(judge, pairs))


def length_correlation(scores: Sequence[float], data: Sequence[Datum]) -> float:
    """Pearson's correlation of the scores with the lengths of the completions, in trained tokens; 0 where either does
    not vary. Far above that of the labels, a reward model has learnt to count."""
    lengths = [sum(map(bool, datum.weights)) for datum in data]
    if len(set(lengths)) < 2 or len(set(scores)) < 2:
        return 0.0
    return statistics.correlation(scores, lengths)


def likelier_pair_accuracy(judge: Judge, pairs: Sequence[Datum]) -> float:
    """How often a language model finds the chosen completion the more likely one, per token."""
    return pair_accuracy(
        [math.fsum(row) / max(1, sum(map(bool, datum.weights))) for datum, row in logprobs_of(judge, pairs)]
    )


def likelier_desirable(judge: Judge, data: Sequence[Datum]) -> float:
    """Of all pairs of a desirable and an undesirable answer, the share whose desirable one is more likely, per token:
    the area under the ROC curve. 0.5 says nothing; a tie counts half."""
    means = [math.fsum(row) / max(1, sum(map(bool, datum.weights))) for datum, row in logprobs_of(judge, data)]
    good = [mean for mean, datum in zip(means, data, strict=True) if datum.label > 0]
    bad = [mean for mean, datum in zip(means, data, strict=True) if datum.label <= 0]
    if not good or not bad:
        raise ValueError("answers with one label alone cannot be told apart")
    return statistics.fmean((a > b) + 0.5 * (a == b) for a in good for b in bad)


def heldout_loss(judge: Judge, data: Sequence[Datum]) -> float:
    """Mean negative log-likelihood of a trained token."""
    known = logprobs_of(judge, data)
    num = sum(sum(map(bool, datum.weights)) for datum, _ in known)
    return -math.fsum(value for _, row in known for value in row) / num


def logprobs_of(judge: Judge, data: Sequence[Datum]) -> list[tuple[Datum, list[float]]]:
    return [pair for part in chunks(data) for pair in zip(part, judge.logprobs(part), strict=True)]


def chunks(data: Sequence[Datum]) -> list[Sequence[Datum]]:
    return [data[begin : begin + CHUNK] for begin in range(0, len(data), CHUNK)]

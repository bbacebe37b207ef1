"""Numbers on data that training never sees, each with its standard error: what answers to a task earn, how often the
better one of a pair is preferred, the loss of held-out rows."""

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
from aurify.rewards.rubric import Rubric, mean_rewards
from aurify.types import Datum, Group, Metrics, SamplingParams, Task

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet

CALL_SIZE = 64  # data in one call of the engine


class Judge(Protocol):
    """What held-out numbers need of an engine."""

    def logprobs(self, data: Sequence[Datum]) -> list[list[float]]: ...

    def scores(self, data: Sequence[Datum]) -> list[float]: ...


@dataclass(frozen=True)
class Estimate:
    """A number from `num` held-out tasks, pairs or rows, and its standard error."""

    value: float
    error: float
    num: int


def estimate_mean(values: Sequence[float]) -> Estimate:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(statistics.fmean(values), error, len(values))


# ---------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Evaluation(Estimate):
    """value: the mean over held-out tasks of the rubric's first reward, the one that judges the answer. Where it does
    not apply the answer counts 0, and so does an answer that failed twice."""

    measure: str  # the name of that reward
    metrics: Metrics = field(default_factory=dict)
    groups: Sequence[Group] = ()  # the transcripts
    by_task: Sequence[float] = ()  # what the answers to each task earn on average
    notes: Sequence[str] = ()  # what went wrong, and was counted

    def record(self) -> dict[str, Any]:
        return {"measure": self.measure, "value": self.value, "error": self.error, "num": self.num, **self.metrics}


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

    async def answer(index: int, task: Task) -> Group:
        seeds = [(seed * 1_000_003 + index) * 1_000 + k for k in range(samples_per_task)]
        played = await asyncio.gather(
            *(player.play(task, replace(params, seed=s), order=(index, k)) for k, s in enumerate(seeds))
        )
        trajectories = [trajectory for trajectory in played if trajectory is not None]
        await rubric.score(task, trajectories)
        return Group(task, trajectories)

    groups = await asyncio.gather(*(answer(index, task) for index, task in enumerate(tasks)))
    if not player.num_ended:
        raise player.too_many()
    return replace(
        summarise_evaluation(groups, taskset.rubric.rewards[0].name, samples_per_task), notes=player.take_lines()
    )


def summarise_evaluation(groups: Sequence[Group], measure: str, samples_per_task: int) -> Evaluation:
    """Tasks weigh the same, however many answers each has. Answers that failed are missing in their group."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    by_task = [math.fsum(read_answer_values(group, measure)) / samples_per_task for group in groups]
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
    metrics |= {f"reward_{name}": mean for name, mean in mean_rewards(trajectories).items() if name != measure}
    for part in sorted({group.task.part for group in groups if group.task.part}):
        pairs = zip(by_task, groups, strict=True)
        metrics[f"{part}/value"] = statistics.fmean(value for value, group in pairs if group.task.part == part)
    mean = estimate_mean(by_task)
    return Evaluation(mean.value, mean.error, mean.num, measure, metrics, groups, by_task)


def read_answer_values(group: Group, measure: str) -> list[float]:
    """What each answer to a task earns by the reward that is measured; 0 where it does not apply."""
    return [trajectory.rewards.get(measure) or 0.0 for trajectory in group.trajectories]


# ---------------------------------------------------------------------- pairs, labels and rows


def compute_heldout_scores(judge: Judge, data: Sequence[Datum]) -> list[float]:
    """What a reward model gives each completion."""
    return [score for part in split_heldout_calls(data) for score in judge.scores(part)]


def compute_heldout_likelihoods(judge: Judge, data: Sequence[Datum]) -> list[float]:
    """The mean log-prob of each completion's trained tokens."""
    rows = compute_heldout_logprobs(judge, data)
    return [math.fsum(row) / max(1, count_heldout_tokens(datum)) for datum, row in zip(data, rows, strict=True)]


def pair_accuracy(values: Sequence[float]) -> Estimate:
    """The share of pairs (chosen, rejected, chosen, ...) whose chosen one has the larger value. A tie counts half."""
    return estimate_mean([(margin > 0) + 0.5 * (margin == 0) for margin in subtract_pair_values(values)])


def pair_margin(values: Sequence[float]) -> Estimate:
    """How much larger the value of the chosen one is. It still moves where the accuracy is at its end."""
    return estimate_mean(subtract_pair_values(values))


def subtract_pair_values(values: Sequence[float]) -> list[float]:
    if not values or len(values) % 2:
        raise ValueError(f"pairs of values are needed; there are {len(values)} values")
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]


def label_accuracy(values: Sequence[float], labels: Sequence[float]) -> Estimate:
    """Of all pairs of a desirable and an undesirable answer, the share whose desirable one has the larger value: the
    area under the ROC curve. 0.5 says nothing; a tie counts half. The error is DeLong's."""
    good = [value for value, label in zip(values, labels, strict=True) if label > 0]
    bad = [value for value, label in zip(values, labels, strict=True) if label <= 0]
    if not good or not bad:
        raise ValueError("answers with one label alone cannot be told apart")
    wins = [[(a > b) + 0.5 * (a == b) for b in bad] for a in good]
    of_good = estimate_mean([statistics.fmean(row) for row in wins])
    of_bad = estimate_mean([statistics.fmean(column) for column in zip(*wins, strict=True)])
    return Estimate(of_good.value, math.hypot(of_good.error, of_bad.error), len(values))


def heldout_loss(judge: Judge, data: Sequence[Datum]) -> Estimate:
    """Mean negative log-likelihood of a trained token. Its error is that of a ratio of two sums over rows."""
    losses = [-math.fsum(row) for row in compute_heldout_logprobs(judge, data)]
    nums = [count_heldout_tokens(datum) for datum in data]
    mean = math.fsum(losses) / sum(nums)
    rest = estimate_mean([loss - mean * num for loss, num in zip(losses, nums, strict=True)])
    return Estimate(mean, rest.error / statistics.fmean(nums), len(data))


def length_correlation(scores: Sequence[float], data: Sequence[Datum]) -> float:
    """Pearson's correlation of the scores with the lengths of the completions, in trained tokens; 0 where either does
    not vary. Far above that of the labels, a reward model has learnt to count."""
    lengths = [count_heldout_tokens(datum) for datum in data]
    if len(set(lengths)) < 2 or len(set(scores)) < 2:
        return 0.0
    return statistics.correlation(scores, lengths)


def compute_heldout_logprobs(judge: Judge, data: Sequence[Datum]) -> list[list[float]]:
    return [row for part in split_heldout_calls(data) for row in judge.logprobs(part)]


def split_heldout_calls(data: Sequence[Datum]) -> list[Sequence[Datum]]:
    return [data[begin : begin + CALL_SIZE] for begin in range(0, len(data), CALL_SIZE)]


def count_heldout_tokens(datum: Datum) -> int:
    return sum(map(bool, datum.weights))

"""The loop over the model's own answers: sample, score, advantage, update, and sample again from the new weights.

Every completion has a sampling seed of its own, made of the run's seed, the step, the task and its place in the
group. So a resumed run samples what the straight run would have sampled, and of the past nothing has to be stored but
the number of steps.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from aurify.engine.checkpoint import rng_state
from aurify.engine.optim import lr_at
from aurify.environments.rollout import datum_of, rollout
from aurify.errors import UserError
from aurify.loops.interrupt import Interrupt, Interrupted
from aurify.loops.ledger import rollout_metrics
from aurify.loops.progress import Checkpoints, derive_seed
from aurify.loops.recipe import OnlineStage
from aurify.types import Datum, Group, Metrics, OnlineAlgorithm, Task, Trajectory

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.renderer import Renderer
    from aurify.rewards.rubric import Rubric
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet
    from aurify.tracking.tracker import StageTracker


@dataclass(frozen=True)
class Rollouts:
    """What is needed to turn tasks into scored groups."""

    sampler: Sampler
    renderer: Renderer
    taskset: TaskSet
    rubric: Rubric
    stage: OnlineStage
    seed: int

    async def groups(self, step: int, tasks: Sequence[Task]) -> list[Group]:
        return await asyncio.gather(*(self.group(step, place, task) for place, task in enumerate(tasks)))

    async def group(self, step: int, place: int, task: Task) -> Group:
        """All trajectories of one task at the same time; scored as soon as the last of them ends."""
        trajectories = await asyncio.gather(
            *(
                self.trajectory(task, derive_seed(self.seed, step, place, task.id, k))
                for k in range(self.stage.completions_per_prompt)
            )
        )
        await self.rubric.score(task, trajectories)
        if self.stage.truncated == "penalise":
            for trajectory in trajectories:
                penalise(trajectory, self.stage.truncation_penalty)
        return Group(task, list(trajectories))

    async def trajectory(self, task: Task, seed: int) -> Trajectory:
        try:
            return await rollout(
                task,
                self.taskset.environment(task),
                self.sampler,
                self.renderer,
                replace(self.stage.sampling, seed=seed),
                max_context=self.stage.sampler.max_context,
                max_turns=self.stage.max_turns,
            )
        except UserError as error:
            raise UserError(f"task {task.id!r}: {error}") from error


def penalise(trajectory: Trajectory, penalty: float) -> None:
    """A completion cut by a token limit costs `penalty`; it stands among the rewards under its own name."""
    if trajectory.truncated and trajectory.reward is not None:
        trajectory.rewards["truncated"] = -penalty
        trajectory.reward -= penalty


def data_of(group: Group, advantages: Sequence[float], stage: OnlineStage) -> list[Datum]:
    """What is trained of a group: not those without a reward, and not the truncated ones where they are masked."""
    return [
        datum_of(trajectory, advantage)
        for trajectory, advantage in zip(group.trajectories, advantages, strict=True)
        if trajectory.reward is not None and not (trajectory.truncated and stage.truncated == "mask")
    ]


def minibatches(groups: Sequence[Sequence[Datum]], stage: OnlineStage, seed: int) -> Iterator[list[Datum]]:
    """The optimiser steps of one round. Groups stay whole; their order is drawn anew for each epoch."""
    generator = random.Random(seed)
    for _ in range(stage.num_epochs):
        order = list(groups)
        if stage.num_minibatches > 1:
            generator.shuffle(order)
        for part in range(min(stage.num_minibatches, len(order))):
            yield [datum for group in order[part :: stage.num_minibatches] for datum in group]


def update(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    groups: Sequence[Sequence[Datum]],
    stage: OnlineStage,
    *,
    lr: float,
    seed: int,
) -> Metrics:
    """One round's optimiser steps; metrics are means over them, ledger entries sums."""
    temperature = stage.sampling.temperature
    if "ref_logprobs" in algorithm.needs:
        groups = with_logprobs(engine, groups, "ref_logprobs", temperature)
    if (
        stage.num_minibatches > 1 or stage.num_epochs > 1
    ):  # else the policy of the update is the one that sampled: the ratio is 1
        groups = with_logprobs(engine, groups, "old_logprobs", temperature)
    results = []
    for batch in minibatches(groups, stage, seed):
        metrics = engine.forward_backward(batch, algorithm, temperature=temperature)
        results.append(metrics | engine.optim_step(lr))
    names = {name for metrics in results for name in metrics}
    return {
        name: sum(metrics.get(name, 0.0) for metrics in results) / (1 if name.startswith("ledger/") else len(results))
        for name in sorted(names)
    }


def with_logprobs(
    engine: Engine, groups: Sequence[Sequence[Datum]], stream: str, temperature: float
) -> list[list[Datum]]:
    flat = [datum for group in groups for datum in group]
    known = iter(engine.logprobs(flat, reference=stream == "ref_logprobs", temperature=temperature))
    return [[replace(datum, **{stream: next(known)}) for datum in group] for group in groups]  # type: ignore[arg-type]


def tasks_from(taskset: TaskSet, seed: int, begin: int) -> Iterator[Task]:
    """The training tasks from place `begin` on. A finite set starts again, in its own order, when it is used up."""
    place, epoch = 0, 0
    while True:
        num = 0
        for task in taskset.train(derive_seed(seed, "tasks", epoch)):
            num += 1
            if place >= begin:
                yield task
            place += 1
        if num == 0:
            raise UserError(f"task {taskset.name!r}: there is no training task; look at its options")
        epoch += 1


def train_online(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    rollouts: Rollouts,
    *,
    tracker: StageTracker,
    checkpoints: Checkpoints,
) -> int:
    """Trains from the newest checkpoint, or from the start, to the end; then closes the sampler. Returns the number of
    steps. Raises `Interrupted` after a checkpoint when asked to stop."""
    stage, sampler, total = rollouts.stage, rollouts.sampler, rollouts.stage.steps
    if "ref_logprobs" in algorithm.needs:
        engine.keep_reference()
    start = checkpoints.restore(engine)
    tracker.start(total, start)
    tasks = tasks_from(rollouts.taskset, rollouts.seed, start * stage.prompts_per_step)
    reported: set[str] = set()  # rewards whose failure was told
    with Interrupt() as interrupt, asyncio.Runner() as runner:
        try:
            runner.run(sampler.load_weights(engine.weights(), engine.version))
            for step in range(start, total):
                begin, rng = time.perf_counter(), rng_state()
                chosen = list(islice(tasks, stage.prompts_per_step))
                groups = runner.run(interrupt.until_stopped(rollouts.groups(step, chosen)))
                if groups is None:  # this step has changed nothing yet
                    checkpoints.save(step, engine, rng)
                    raise Interrupted(step)
                sampled = time.perf_counter()
                metrics = learn(engine, algorithm, groups, rollouts, step)
                runner.run(sampler.load_weights(engine.weights(), engine.version))
                ended = time.perf_counter()
                metrics |= {
                    "time/step": ended - begin,
                    "time/sample": sampled - begin,
                    "time/train": ended - sampled,
                    "time/sampled_per_second": metrics["ledger/tokens_sampled"] / (sampled - begin),
                }
                tracker.step(step + 1, metrics)
                for name in sorted(rollouts.rubric.failures.keys() - reported):
                    tracker.event(
                        f"reward {name!r}: {rollouts.rubric.failures[name]}. Such answers are masked, and counted"
                    )
                    reported.add(name)
                if stage.samples_every and (step % stage.samples_every == 0 or step + 1 == total):
                    tracker.samples(step + 1, groups)
                checkpoints.after(step + 1, engine, interrupt)
        finally:
            runner.run(sampler.close())
    return total


def learn(
    engine: Engine, algorithm: OnlineAlgorithm, groups: Sequence[Group], rollouts: Rollouts, step: int
) -> Metrics:
    """From scored groups to new weights. Where no group has spread, there is nothing to learn: the step counts, the
    weights stay."""
    stage, rubric = rollouts.stage, rollouts.rubric
    advantages = algorithm.advantages(groups)
    metrics = rollout_metrics(groups, advantages, stage)
    metrics["ledger/rewards_failed"] = float(sum(rubric.num_failures.values()))
    rubric.num_failures.clear()
    chosen = [data_of(group, values, stage) for group, values in zip(groups, advantages, strict=True) if any(values)]
    chosen = [data for data in chosen if data]
    if chosen:
        lr, seed = lr_at(stage.optim, step, stage.steps), derive_seed(rollouts.seed, "minibatches", step)
        metrics |= update(engine, algorithm, chosen, stage, lr=lr, seed=seed)
    return metrics

"""The loop over the model's own answers: sample, score, advantage, update, and sample again from the new weights.

A group may hold more than the policy's answers of now: a guide's (`loops/guidance.py`) and the policy's own of the
past (`loops/replay.py`). The loop treats all of them alike; every token carries who wrote it, and the algorithm makes
of that what it wants."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import fsum
from statistics import fmean
from typing import TYPE_CHECKING, Any

from aurify.algorithms.reward_kl import RewardKL, divergence
from aurify.engine.checkpoint import rng_state
from aurify.engine.optim import lr_at
from aurify.environments.rollout import build_datum
from aurify.errors import UserError
from aurify.loops.entropy import EntropyController
from aurify.loops.interrupt import Interrupt, Interrupted
from aurify.loops.ledger import means_by_source, rollout_metrics
from aurify.loops.progress import Checkpoints, derive_seed
from aurify.loops.rollouts import Rollouts, TaskStream
from aurify.pipeline.recipe import OnlineStage
from aurify.rewards.trl import TrainerState
from aurify.types import Datum, Group, Metrics, OnlineAlgorithm, Trajectory, prepared

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.tracking.tracker import StageTracker


class Memory:
    """What the loop remembers beside the engine: the tasks that were taken, the buffer, the weight of the entropy."""

    def __init__(self, **parts: Any) -> None:
        self.parts: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def train_online(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    rollouts: Rollouts,
    *,
    tracker: StageTracker,
    checkpoints: Checkpoints,
) -> int:
    """Trains from the newest checkpoint, or from the start, to the end; then closes the sampler. Returns the number of
    steps. Raises `Interrupted` after a checkpoint when asked to stop. Where sampling stops the run, as after too many
    failures, there is a checkpoint too."""
    stage, sampler, total = rollouts.stage, rollouts.sampler, rollouts.stage.steps
    if "ref_logprobs" in algorithm.needs:
        engine.keep_reference()
    tasks = TaskStream(rollouts.taskset, rollouts.seed)
    controller = EntropyController.of(algorithm)
    checkpoints = replace(checkpoints, memory=Memory(tasks=tasks, buffer=rollouts.buffer, entropy=controller))
    start = checkpoints.restore(engine)
    tracker.start(total, start)
    reported: set[str] = set()  # rewards whose failure was told
    with Interrupt() as interrupt, asyncio.Runner() as runner:
        try:
            runner.run(sampler.load_weights(engine.weights(), engine.version))
            for step in range(start, total):
                begin, rng, taken = time.perf_counter(), rng_state(), tasks.taken
                rollouts.rubric.state = TrainerState(step, total)
                replayed = replay(engine, rollouts, step)
                try:
                    groups = runner.run(interrupt.until_stopped(rollouts.sample(step, algorithm, tasks, replayed)))
                except UserError:
                    if step > start:  # what was trained until here is not lost with it
                        tasks.taken = taken
                        checkpoints.save(step, engine, rng)
                    raise
                if groups is None:  # this step has changed nothing yet
                    tasks.taken = taken
                    checkpoints.save(step, engine, rng)
                    raise Interrupted(step)
                sampled = time.perf_counter()
                metrics = learn(
                    engine, controller.apply(algorithm) if controller else algorithm, groups, rollouts, step
                )
                if controller:
                    controller.observe(metrics.get("loss/entropy"))
                    metrics["optim/entropy_coef"] = controller.coef
                runner.run(sampler.load_weights(engine.weights(), engine.version))
                ended = time.perf_counter()
                metrics |= {
                    "time/step": ended - begin,
                    "time/sample": sampled - begin,
                    "time/train": ended - sampled,
                    "time/sampled_per_second": metrics["ledger/tokens_sampled"] / (sampled - begin),
                }
                tracker.step(step + 1, metrics)
                for line in rollouts.player.take_lines():
                    tracker.event(line)
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


def replay(engine: Engine, rollouts: Rollouts, step: int) -> list[Any]:
    """The questions of the buffer that this step takes up again, each with a stored trajectory."""
    if rollouts.buffer is None:
        return []
    stage, seed = rollouts.stage, derive_seed(rollouts.seed, "replay", step)
    return rollouts.buffer.choose(stage.prompts_per_step, engine, stage.sampling.temperature, seed)


def learn(
    engine: Engine, algorithm: OnlineAlgorithm, groups: Sequence[Group], rollouts: Rollouts, step: int
) -> Metrics:
    """From scored groups to new weights. Where nothing has a gradient (no spread in any group, nor KL or entropy in
    `flat_groups: keep`), there is nothing to learn: the step counts, the weights stay."""
    stage, rubric, num_asked = rollouts.stage, rollouts.rubric, len(groups)
    discarded = [group for group in rollouts.discarded if group.trajectories]
    rollouts.discarded.clear()
    groups = [group for group in groups if group.trajectories]
    advantages = algorithm.advantages(groups)
    metrics = rollout_metrics(groups, advantages, stage, discarded)
    metrics |= {"ledger/groups_failed": float(num_asked - len(groups)), **rollouts.player.take_counts()}
    metrics["ledger/rewards_failed"] = float(sum(rubric.num_failures.values()))
    rubric.num_failures.clear()
    penalty = algorithm if isinstance(algorithm, RewardKL) and algorithm.reward_kl_coef else None
    worth = [[1.0] * len(values) for values in advantages] if penalty else advantages  # equal rewards teach there too
    keep_flat = keeps_flat(algorithm, worth)
    chosen = [
        trained(group, values, stage, keep_flat=keep_flat, needs_reward=getattr(algorithm, "needs_reward", True))
        for group, values in zip(groups, worth, strict=True)
    ]
    if stage.consistent_only:
        chosen, metrics["ledger/trajectories_inconsistent"] = consistent(groups, chosen)
    chosen = [pairs for pairs in chosen if pairs]
    data = [[build_datum(trajectory, advantage) for trajectory, advantage in pairs] for pairs in chosen]
    if data:
        data = with_streams(engine, algorithm, data, stage)
        if penalty:
            rewards = [[t.reward for t, _ in pairs if t.reward is not None] for pairs in chosen]
            data = penalty.penalised(rewards, data)
            metrics["rollout/kl"] = fmean(fsum(divergence(datum)) for group in data for datum in group)
        lr, seed = lr_at(stage.optim, step, stage.steps), derive_seed(rollouts.seed, "minibatches", step)
        metrics |= means_by_source(update(engine, algorithm, data, stage, lr=lr, seed=seed))
    if rollouts.buffer is not None:
        logprobs = {
            id(trajectory): datum.old_logprobs
            for pairs, row in zip(chosen, data, strict=True)
            for (trajectory, _), datum in zip(pairs, row, strict=True)
            if datum.old_logprobs is not None
        }
        metrics |= rollouts.buffer.learn([*groups, *discarded], logprobs, rubric, step)
    return metrics


Trained = list[tuple[Trajectory, float]]  # trajectories with their advantages


def trained(
    group: Group, advantages: Sequence[float], stage: OnlineStage, *, keep_flat: bool = False, needs_reward: bool = True
) -> Trained:
    """What is trained of a group: not those without a reward, where the method needs one, nor the truncated ones where
    they are masked, nor, unless `keep_flat`, the policy's answers, or a guide's, where all of them have advantage 0."""
    pairs = list(zip(group.trajectories, advantages, strict=True))
    worth = {trajectory.source == "guidance" for trajectory, advantage in pairs if advantage}
    return [
        (trajectory, advantage)
        for trajectory, advantage in pairs
        if (keep_flat or (trajectory.source == "guidance") in worth)
        and (trajectory.reward is not None or not needs_reward)
        and not (trajectory.truncated and stage.truncated == "mask")
    ]


def keeps_flat(algorithm: OnlineAlgorithm, advantages: Sequence[Sequence[float]]) -> bool:
    """Whether groups without spread are trained: only where anything of the step has a gradient."""
    if getattr(algorithm, "flat_groups", "leave_out") == "leave_out":
        return False
    acts = bool(algorithm.needs & {"ref_logprobs", "entropy"})  # KL and entropy act whatever the advantages are
    return acts or any(any(values) for values in advantages)


def consistent(groups: Sequence[Group], chosen: Sequence[Trained]) -> tuple[list[Trained], float]:
    """Only the answers all of whose rewards are at least the mean of their group, or all at most; and how many are left
    out. Rewards of weight 0 do not count. Advantages stay those of the whole group, so those of what is left need not
    have mean 0."""
    kept = [[(t, a) for t, a in pairs if agrees(t, group)] for group, pairs in zip(groups, chosen, strict=True)]
    return kept, float(sum(map(len, chosen)) - sum(map(len, kept)))


def agrees(trajectory: Trajectory, group: Group) -> bool:
    signs = set()
    for name, value in trajectory.rewards.items():
        weight = group.reward_weights.get(name, 1.0)
        if value is None:
            continue
        known = [other for t in group.trajectories if (other := t.rewards.get(name)) is not None]
        distance = weight * (value - fmean(known)) if min(known) < max(known) else 0.0
        signs |= {distance > 0} if distance else set()
    return len(signs) < 2


def with_streams(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    groups: Sequence[Sequence[Datum]],
    stage: OnlineStage,
) -> list[list[Datum]]:
    """Adds the log-probs that the algorithm, or the way the stage trains, needs beside those of the policy of now."""
    flat = [datum for group in groups for datum in group]
    temperature = stage.sampling.temperature
    if "ref_logprobs" in algorithm.needs:
        known = engine.logprobs(flat, reference=True, temperature=temperature)
        flat = [replace(datum, ref_logprobs=values) for datum, values in zip(flat, known, strict=True)]
    if "teacher_logprobs" in algorithm.needs:
        assert engine.teacher is not None
        known = engine.teacher.logprobs(flat, temperature=temperature)
        flat = [replace(datum, ref_logprobs=values) for datum, values in zip(flat, known, strict=True)]
    several = stage.num_minibatches > 1 or stage.num_epochs > 1  # else the policy of the update is that of the rollouts
    if several or stage.replay is not None or "old_logprobs" in algorithm.needs:
        flat = with_old_logprobs(engine, flat, temperature, guided=getattr(algorithm, "asks_guide_ratio", True))
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in groups]


def with_old_logprobs(engine: Engine, data: Sequence[Datum], temperature: float, *, guided: bool = True) -> list[Datum]:
    """The trainer's log-probs before the update. A replayed answer keeps its own of the past. A guide's tokens have
    those of the trainer too, so that their ratio is the same with one update and with several; guided: False saves the
    pass over whole traces for methods that never look at them, and gives 0."""
    sources = ("policy", "guidance") if guided else ("policy",)
    known = iter(engine.logprobs([datum for datum in data if datum.source in sources], temperature=temperature))
    result = []
    for datum in data:
        values = next(known) if datum.source in sources else datum.logprobs
        assert values is not None
        result.append(replace(datum, old_logprobs=values))
    return result


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
    results = []
    for batch in minibatches(groups, stage, seed):
        batch = prepared(algorithm, batch, engine, temperature)
        metrics = engine.forward_backward(batch, algorithm, temperature=temperature)
        results.append(metrics | engine.optim_step(lr))
    names = {name for metrics in results for name in metrics}
    return {
        name: sum(metrics.get(name, 0.0) for metrics in results) / (1 if name.startswith("ledger/") else len(results))
        for name in sorted(names)
    }

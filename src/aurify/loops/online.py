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
from itertools import count
from statistics import fmean
from typing import TYPE_CHECKING

from aurify.algorithms.hooks import algorithm_hook, find_advantages
from aurify.engine.checkpoint import rng_state
from aurify.engine.optim import lr_at
from aurify.environments.rollout import build_data
from aurify.errors import UserError
from aurify.loops.interrupt import Interrupt, Interrupted
from aurify.loops.ledger import means_by_source, rollout_metrics
from aurify.loops.progress import Checkpoints, derive_seed
from aurify.loops.rollouts import Rollouts, Round
from aurify.loops.spans import write_spans
from aurify.loops.units import join_rollout_units, split_rollout_advantages
from aurify.rewards.trl import TrainerState
from aurify.types import Datum, Group, Metrics, OnlineAlgorithm, Trajectory, prepared

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.pipeline.recipe import OnlineStage
    from aurify.tracking.tracker import StageTracker


def train_online(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    rollouts: Rollouts,
    *,
    tracker: StageTracker,
    checkpoints: Checkpoints,
) -> None:
    """Trains from the newest checkpoint, or from the start, to the end; then closes the sampler. Raises `Interrupted`
    after a checkpoint when asked to stop. Where sampling stops the run, as after too many failures, there is a
    checkpoint too."""
    stage, sampler = rollouts.stage, rollouts.sampler
    if "ref_logprobs" in algorithm.needs:
        engine.keep_reference()
    controller = algorithm_hook(algorithm, "make_controller")()
    memory = {"tasks": rollouts.tasks, "buffer": rollouts.buffer, "entropy": controller}
    checkpoints = replace(checkpoints, memory={name: part for name, part in memory.items() if part is not None})
    start = checkpoints.restore(engine, stage.steps)
    tracker.start(stage.steps, start)
    with Interrupt() as interrupt, asyncio.Runner() as runner:
        try:
            runner.run(sampler.load_weights(engine.weights(), engine.version))
            for step in checkpoints.count_steps(start, stage.steps, engine):
                begin, rng = time.perf_counter(), rng_state()
                rollouts.rubric.state = TrainerState(step, stage.steps)
                try:
                    made = runner.run(interrupt.until_stopped(rollouts.sample(step, algorithm, engine)))
                except UserError:
                    if step > start:  # what was trained until here is not lost with it
                        checkpoints.save(step, engine, rng)
                    raise
                if made is None:  # this step has changed nothing yet
                    checkpoints.save(step, engine, rng)
                    raise Interrupted(step)
                sampled = time.perf_counter()
                runner.run(sampler.rest())
                method = controller.apply(algorithm) if controller else algorithm
                metrics = learn(engine, method, made, rollouts, step)
                if controller:
                    metrics |= controller.observe(metrics)
                runner.run(sampler.load_weights(engine.weights(), engine.version))
                metrics |= round_time_metrics(begin, sampled, time.perf_counter(), metrics["ledger/tokens_sampled"])
                tracker.step(step + 1, metrics)
                for line in made.lines:
                    tracker.event(line)
                if stage.samples_every and (step % stage.samples_every == 0 or step + 1 == stage.steps):
                    write_spans(made.groups, rollouts.renderer.tokenizer)
                    tracker.samples(step + 1, made.groups)
                checkpoints.after(step + 1, engine, interrupt)
        finally:
            runner.run(sampler.close())


def round_time_metrics(begin: float, sampled: float, end: float, num_tokens: float) -> Metrics:
    return {
        "time/step": end - begin,
        "time/sample": sampled - begin,
        "time/train": end - sampled,
        "time/sampled_per_second": num_tokens / (sampled - begin),
    }


def learn(engine: Engine, algorithm: OnlineAlgorithm, made: Round, rollouts: Rollouts, step: int) -> Metrics:
    """From a round to new weights. Where nothing has a gradient (no spread in any group, nor KL or entropy in
    `flat_groups: keep`), there is nothing to learn: the step counts, the weights stay."""
    stage, groups = rollouts.stage, made.filled
    advantages, given = find_advantages(algorithm, groups)
    metrics = rollout_metrics(made, advantages, stage)
    keep_flat = algorithm_hook(algorithm, "keeps_flat")(advantages)
    needs_reward = algorithm_hook(algorithm, "needs_reward")
    chosen = [
        choose_trained(group, values, stage, keep_flat=keep_flat, needs_reward=needs_reward)
        for group, values in zip(groups, advantages, strict=True)
    ]
    if stage.consistent_only:
        num_before = sum(map(len, chosen))
        chosen = [agreeing_trajectories(group, indices) for group, indices in zip(groups, chosen, strict=True)]
        metrics["ledger/trajectories_inconsistent"] = float(num_before - sum(map(len, chosen)))
    units = count()
    data: Sequence[Sequence[Datum]] = [
        [datum for k in indices for datum in build_data(group.trajectories[k], values[k], next(units))]
        for group, values, indices in zip(groups, given, chosen, strict=True)
    ]
    joined: Sequence[Sequence[Datum]] = data
    if any(data):
        data = add_round_logprobs(engine, algorithm, data, stage)
        rewards = [[group.rewards[k] for k in indices] for group, indices in zip(groups, chosen, strict=True)]
        joined, told = algorithm_hook(algorithm, "revise_advantages")(
            rewards, [join_rollout_units(row) for row in data]
        )
        data = [split_rollout_advantages(*pair) for pair in zip(data, joined, strict=True)]
        lr, seed = lr_at(stage.optim, step, stage.steps), derive_seed(rollouts.seed, "minibatches", step)
        learned: dict[int, Datum] = {}
        metrics |= told | means_by_source(
            update_policy(engine, algorithm, data, stage, lr=lr, seed=seed, learned=learned)
        )
        for group, indices, row in zip(groups, chosen, data, strict=True):
            note_advantages(group, indices, [learned.get(id(datum), datum) for datum in row])
    if rollouts.buffer is not None:
        known = [group_old_logprobs(*entry) for entry in zip(groups, chosen, joined, strict=True)]
        known += [[None] * len(group.trajectories) for group in made.discarded]
        metrics |= rollouts.buffer.learn([*groups, *made.discarded], known, rollouts.rubric, step)
    return metrics


def group_old_logprobs(group: Group, chosen: Sequence[int], data: Sequence[Datum]) -> list[list[float] | None]:
    """The trainer's log-probs before the update for each trajectory of a group; None for those that were not
    trained. data: one for each that was."""
    known = {index: datum.old_logprobs for index, datum in zip(chosen, data, strict=True)}
    return [known.get(index) for index in range(len(group.trajectories))]


def note_advantages(group: Group, chosen: Sequence[int], data: Sequence[Datum]) -> None:
    """Leaves the advantages of tokens with the trajectories, to be looked at."""
    for index, datum in zip(chosen, join_rollout_units(data), strict=True):
        group.trajectories[index].advantages = list(datum.advantages or ())


# ---------------------------------------------------------------------- which trajectories of a group are trained


def choose_trained(
    group: Group, advantages: Sequence[float], stage: OnlineStage, *, keep_flat: bool = False, needs_reward: bool = True
) -> list[int]:
    """The indices of the trajectories that are trained: not those without a reward, where the method needs one, nor the
    truncated ones where they are masked, nor, unless `keep_flat`, the policy's answers, or a guide's, where all of them
    have advantage 0."""
    pairs = list(zip(group.trajectories, advantages, strict=True))
    worth = {trajectory.source == "guidance" for trajectory, advantage in pairs if advantage}
    return [
        index
        for index, trajectory in enumerate(group.trajectories)
        if (keep_flat or (trajectory.source == "guidance") in worth)
        and (trajectory.reward is not None or not needs_reward)
        and not (trajectory.truncated and stage.truncated == "mask")
    ]


def agreeing_trajectories(group: Group, indices: Sequence[int]) -> list[int]:
    """Those of a group's answers all of whose rewards are at least the mean of their group, or all at most. Rewards of
    weight 0 do not count. Advantages stay those of the whole group, so those of what is left need not have mean 0."""
    return [index for index in indices if trajectory_agrees(group.trajectories[index], group)]


def trajectory_agrees(trajectory: Trajectory, group: Group) -> bool:
    signs = set()
    for name, value in trajectory.rewards.items():
        weight = group.reward_weights.get(name, 1.0)
        if value is None:
            continue
        known = [other for t in group.trajectories if (other := t.rewards.get(name)) is not None]
        distance = weight * (value - fmean(known)) if min(known) < max(known) else 0.0
        signs |= {distance > 0} if distance else set()
    return len(signs) < 2


# ---------------------------------------------------------------------- the optimiser steps of a round


def add_round_logprobs(
    engine: Engine, algorithm: OnlineAlgorithm, groups: Sequence[Sequence[Datum]], stage: OnlineStage
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
        flat = with_old_logprobs(engine, flat, temperature, guided=algorithm_hook(algorithm, "asks_guide_ratio"))
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in groups]


def with_old_logprobs(engine: Engine, data: Sequence[Datum], temperature: float, *, guided: bool = True) -> list[Datum]:
    """Adds the trainer's log-probs before the update. A replayed answer keeps its own of the past. A guide's tokens get
    the trainer's too, so that their ratio is the same with one update and with several. guided: False saves the pass
    over whole traces for methods that never look at them, and gives 0."""
    sources = ("policy", "guidance") if guided else ("policy",)
    known = iter(engine.logprobs([datum for datum in data if datum.source in sources], temperature=temperature))
    result = []
    for datum in data:
        values = next(known) if datum.source in sources else datum.logprobs
        assert values is not None
        result.append(replace(datum, old_logprobs=values))
    return result


def split_round_minibatches(groups: Sequence[Sequence[Datum]], stage: OnlineStage, seed: int) -> Iterator[list[Datum]]:
    """The data of each optimiser step. Groups stay whole; their order is drawn anew for each epoch."""
    generator = random.Random(seed)
    for _ in range(stage.num_epochs):
        order = list(groups)
        if stage.num_minibatches > 1:
            generator.shuffle(order)
        for part in range(min(stage.num_minibatches, len(order))):
            yield [datum for group in order[part :: stage.num_minibatches] for datum in group]


def update_policy(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    groups: Sequence[Sequence[Datum]],
    stage: OnlineStage,
    *,
    lr: float,
    seed: int,
    learned: dict[int, Datum],
) -> Metrics:
    """Takes the optimiser steps of a round. Metrics are means over them, ledger entries sums. learned: gets, by the id
    of each of the data, what the algorithm first made of it."""
    temperature = stage.sampling.temperature
    results = []
    for given in split_round_minibatches([group for group in groups if group], stage, seed):
        batch = prepared(algorithm, given, engine, temperature)
        if len(batch) == len(given):
            learned |= {id(datum): made for datum, made in zip(given, batch, strict=True) if id(datum) not in learned}
        metrics = engine.forward_backward(batch, algorithm, temperature=temperature)
        results.append(metrics | engine.optim_step(lr))
    names = {name for metrics in results for name in metrics}
    return {
        name: sum(metrics.get(name, 0.0) for metrics in results) / (1 if name.startswith("ledger/") else len(results))
        for name in sorted(names)
    }

"""From tasks to scored groups: what the policy samples, and what is put beside it from other sources.

Every completion has a sampling seed of its own, made of the run's seed, the step, the task and its index in the group.
So a resumed run samples what the straight run would have sampled, and of the past nothing has to be stored but how many
tasks were taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aurify.algorithms.estimators import has_reward_spread
from aurify.algorithms.hooks import find_advantages
from aurify.environments.player import Player
from aurify.loops.guidance import Beginning
from aurify.loops.progress import derive_seed
from aurify.loops.task_stream import TaskStream
from aurify.rewards.combine import combine_rewards, penalise_truncated_answer
from aurify.types import Group, Metrics, OnlineAlgorithm, Policy, Task, Trajectory

if TYPE_CHECKING:
    from aurify.loops.guidance import Guide
    from aurify.loops.replay import Buffer, Entry
    from aurify.pipeline.recipe import OnlineStage
    from aurify.renderer import Renderer
    from aurify.rewards.rubric import Rubric
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet


@dataclass
class Round:
    """What one round of sampling came to."""

    groups: list[Group]  # one for each prompt of the step; empty where every trajectory failed
    discarded: list[Group] = field(default_factory=list)  # sampled, and replaced by others
    failures: Metrics = field(default_factory=dict)  # trajectories and rewards that failed, for the ledger
    lines: list[str] = field(default_factory=list)  # what a person should be told

    @property
    def filled(self) -> list[Group]:
        return [group for group in self.groups if group.trajectories]


@dataclass
class Rollouts:
    """What is needed to turn tasks into scored groups."""

    sampler: Sampler
    renderer: Renderer
    taskset: TaskSet
    rubric: Rubric
    stage: OnlineStage
    seed: int
    guide: Guide | None = None
    buffer: Buffer | None = None  # of past successes
    tasks: TaskStream = field(init=False)
    player: Player = field(init=False)
    told: set[str] = field(init=False, default_factory=set)  # rewards whose failure was told

    def __post_init__(self) -> None:
        stage = self.stage
        self.tasks = TaskStream(self.taskset, self.seed)
        self.player = Player(
            self.taskset.environment,
            self.sampler,
            self.renderer,
            stage.rollouts,
            max_context=stage.sampler.max_context,
            limits=stage.limits,
        )

    async def sample(self, step: int, algorithm: OnlineAlgorithm, policy: Policy) -> Round:
        """The round of a step. Groups without spread are drawn again with other tasks, up to `dynamic_sampling` times
        (DAPO, arXiv 2503.14476); those that still have none then stay. policy: chooses what is replayed.

        A round that does not come to its end has taken no task. If every trajectory has failed since the first step,
        there is nothing to go on with."""
        taken = self.tasks.taken
        try:
            result = await self.sample_groups(step, algorithm, self.choose_replayed(step, policy))
        except BaseException:
            self.tasks.rewind(taken)
            raise
        result.failures = self.player.take_counts()
        result.failures["ledger/rewards_failed"] = float(self.rubric.num_failures.total())
        self.rubric.num_failures.clear()
        result.lines = [*self.player.take_lines(), *self.untold_failures()]
        return result

    def choose_replayed(self, step: int, policy: Policy) -> list[tuple[Task, Entry]]:
        """The questions of the buffer that a step takes up again, each with a stored trajectory."""
        if self.buffer is None:
            return []
        seed, temperature = derive_seed(self.seed, "replay", step), self.stage.sampling.temperature
        return self.buffer.choose(self.stage.prompts_per_step, policy, temperature, seed)

    async def sample_groups(
        self, step: int, algorithm: OnlineAlgorithm, replayed: Sequence[tuple[Task, Entry]]
    ) -> Round:
        num = self.stage.prompts_per_step
        avoid = {task.id for task, _ in replayed} | (self.buffer.retired if self.buffer else set())
        tasks = [task for task, _ in replayed] + self.tasks.take(num - len(replayed), avoid)
        result = await self.play_groups(step, tasks, [entry for _, entry in replayed])
        for draw in range(1, self.stage.dynamic_sampling + 1):
            flat = self.find_flat(result.groups, algorithm)
            if not flat:
                break
            again = await self.play_groups(step, self.tasks.take(len(flat), avoid), first=draw * num)
            result.discarded += [result.groups[k] for k in flat if result.groups[k].trajectories] + again.discarded
            for index, group in zip(flat, again.groups, strict=True):
                result.groups[index] = group
        if not self.player.num_ended:
            raise self.player.too_many()
        return result

    def find_flat(self, groups: Sequence[Group], algorithm: OnlineAlgorithm) -> list[int]:
        """The indices of groups without spread: that of the advantages or, by `dynamic_sampling_by`, that of the first
        reward, which judges the answer (accuracy, as in DAPO's paper)."""
        if self.stage.dynamic_sampling_by == "accuracy":
            name = self.rubric.rewards[0].name
            rewards = [[t.rewards.get(name) for t in group.trajectories] for group in groups]
            return [index for index, row in enumerate(rewards) if not has_reward_spread(row)]
        advantages = iter(find_advantages(algorithm, [group for group in groups if group.trajectories])[0])
        return [index for index, group in enumerate(groups) if not group.trajectories or not any(next(advantages))]

    async def play_groups(
        self, step: int, tasks: Sequence[Task], stored: Sequence[Entry] = (), *, first: int = 0
    ) -> Round:
        """A group for each task, all at the same time. The first tasks have a stored trajectory. first: the index of
        the first group in its step."""
        entries = [*stored, *[None] * (len(tasks) - len(stored))]
        played = await asyncio.gather(
            *(self.play_group(step, first + k, *pair) for k, pair in enumerate(zip(tasks, entries, strict=True)))
        )
        discarded = [Group(group.task, replaced) for group, replaced in played if replaced]
        return Round([group for group, _ in played], discarded)

    async def play_group(
        self, step: int, index: int, task: Task, stored: Entry | None = None
    ) -> tuple[Group, list[Trajectory]]:
        """All trajectories of one task at the same time, scored as soon as the last of them ends: the policy's own
        first, then a guide's, then the stored one. And those of the policy that a guide's replaced."""
        given = self.guide.beginnings(task, step, derive_seed(self.seed, step, task.id, "guide")) if self.guide else []
        guidance = self.stage.guidance
        late = guidance is not None and guidance.replace == "all_failed"
        replayed = [stored.trajectory()] if stored else []
        num_own = self.stage.completions_per_prompt - len(replayed) - (0 if late else len(given))
        beginnings = [Beginning()] * num_own + ([] if late else given)
        seeds = [derive_seed(self.seed, step, index, task.id, k) for k in range(len(beginnings))]
        sampled = await self.play_each(task, seeds, beginnings, (step, index))
        await self.rubric.score(task, [*sampled, *replayed])
        replaced: list[Trajectory] = []
        success = guidance.success if guidance else 1.0
        if late and given and not any(self.rubric.succeeded(t, success) for t in [*sampled, *replayed]):
            seeds = [derive_seed(self.seed, step, index, task.id, "late guidance", k) for k in range(len(given))]
            guided = await self.play_each(task, seeds, given, (step, index, num_own))
            await self.rubric.score(task, guided)
            num_kept = max(0, num_own - len(guided))  # of the policy's own, less those that failed
            sampled, replaced = [*sampled[:num_kept], *guided], sampled[num_kept:]
        return self.combine(Group(task, [*sampled, *replayed])), replaced

    async def play_each(
        self, task: Task, seeds: Sequence[int], beginnings: Sequence[Beginning], order: tuple[int, ...]
    ) -> list[Trajectory]:
        """A trajectory for each beginning; those that failed are left out. order: of their requests, among those of the
        whole run."""
        pairs = enumerate(zip(seeds, beginnings, strict=True))
        played = await asyncio.gather(*(self.play(task, seed, given, (*order, k)) for k, (seed, given) in pairs))
        return [trajectory for trajectory in played if trajectory is not None]

    async def play(self, task: Task, seed: int, given: Beginning, order: tuple[int, ...]) -> Trajectory | None:
        params = replace(self.stage.sampling, seed=seed)
        trajectory = await self.player.play(task, params, guidance=given.tokens, trace=given.trace, order=order)
        if trajectory is not None and given.logprobs is not None:
            trajectory.segments = [
                replace(s, logprobs=given.logprobs) if s.origin == "guidance" else s for s in trajectory.segments
            ]
        return trajectory

    def combine(self, group: Group) -> Group:
        """The group with several rewards made one, and with what truncated answers cost."""
        group.reward_weights = {reward.name: reward.weight for reward in self.rubric.rewards}
        combine_rewards(group.trajectories, group.reward_weights, self.stage.combine_rewards)
        if self.stage.truncated == "penalise":
            for trajectory in group.trajectories:
                penalise_truncated_answer(trajectory, self.stage.truncation_penalty)
        return group

    def untold_failures(self) -> list[str]:
        names = sorted(self.rubric.failures.keys() - self.told)
        self.told |= set(names)
        return [
            f"reward {name!r}: {self.rubric.failures[name]}. Such answers are masked, and counted" for name in names
        ]

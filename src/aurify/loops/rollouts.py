"""From tasks to scored groups: what the policy samples, and what is put beside it from other sources.

Every completion has a sampling seed of its own, made of the run's seed, the step, the task and its place in the
group. So a resumed run samples what the straight run would have sampled, and of the past nothing has to be stored but
how many tasks were taken."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from aurify.algorithms.estimators import spread
from aurify.environments.player import Player
from aurify.environments.rollout import Limits
from aurify.errors import UserError
from aurify.loops.guidance import Beginning
from aurify.loops.progress import derive_seed
from aurify.loops.replay import TRUNCATED
from aurify.rewards.combine import combine_rewards
from aurify.types import Group, OnlineAlgorithm, Task, Trajectory

if TYPE_CHECKING:
    from aurify.loops.guidance import Guide
    from aurify.loops.replay import Buffer, Entry
    from aurify.pipeline.recipe import OnlineStage
    from aurify.renderer import Renderer
    from aurify.rewards.rubric import Rubric
    from aurify.samplers.sampler import Sampler
    from aurify.tasks.taskset import TaskSet

PATIENCE = 20  # unwanted tasks in a row, beyond a step's worth, before one of them is taken all the same


@dataclass(frozen=True)
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
    discarded: list[Group] = field(default_factory=list)  # sampled in this step, and not trained
    player: Player = field(init=False)

    def __post_init__(self) -> None:
        stage = self.stage
        player = Player(
            self.taskset.environment,
            self.sampler,
            self.renderer,
            stage.rollouts,
            max_context=stage.sampler.max_context,
            limits=Limits(stage.max_turns),
        )
        object.__setattr__(self, "player", player)

    async def sample(
        self, step: int, algorithm: OnlineAlgorithm, tasks: TaskStream, replayed: Sequence[tuple[Task, Entry]]
    ) -> list[Group]:
        """The groups of a step. Those without spread are drawn again with other tasks, up to `dynamic_sampling`
        times (DAPO, arXiv 2503.14476); what then still has none stays. By `dynamic_sampling_by`, spread is that of the
        advantages, or of the first reward, which judges the answer: accuracy, as in the paper.

        A group of which every trajectory failed is empty. Where that is so from the first step on, and of all of them,
        there is nothing to go on with."""
        stage = self.stage
        avoid = {task.id for task, _ in replayed} | (self.buffer.retired if self.buffer else set())
        fresh = tasks.take(stage.prompts_per_step - len(replayed), avoid)
        groups = await self.groups(step, [*(task for task, _ in replayed), *fresh], [entry for _, entry in replayed])
        for draw in range(1, stage.dynamic_sampling + 1):
            flat = self.without_spread(groups, algorithm)
            if not flat:
                break
            self.discarded.extend(groups[place] for place in flat)
            first = draw * stage.prompts_per_step
            again = await self.groups(step, tasks.take(len(flat), avoid), first=first)
            for place, group in zip(flat, again, strict=True):
                groups[place] = group
        if not self.player.num_ended:
            raise self.player.too_many()
        return groups

    def without_spread(self, groups: Sequence[Group], algorithm: OnlineAlgorithm) -> list[int]:
        """Their places."""
        if self.stage.dynamic_sampling_by == "accuracy":
            name = self.rubric.rewards[0].name
            values = [[t.rewards.get(name) for t in group.trajectories] for group in groups]
            return [place for place, row in enumerate(values) if not spread(row)]
        filled = [group for group in groups if group.trajectories]
        known = iter(algorithm.advantages(filled))
        return [place for place, group in enumerate(groups) if not group.trajectories or not any(next(known))]

    async def groups(
        self, step: int, tasks: Sequence[Task], stored: Sequence[Entry] = (), *, first: int = 0
    ) -> list[Group]:
        """One for each task, at the same time. The first tasks have a stored trajectory."""
        entries = [*stored, *[None] * (len(tasks) - len(stored))]
        pairs = zip(tasks, entries, strict=True)
        return await asyncio.gather(
            *(self.group(step, first + place, task, entry) for place, (task, entry) in enumerate(pairs))
        )

    async def group(self, step: int, place: int, task: Task, stored: Entry | None = None) -> Group:
        """All trajectories of one task at the same time; scored as soon as the last of them ends. The policy's own
        come first, then a guide's, then the stored one."""
        seeds = [derive_seed(self.seed, step, place, task.id, k) for k in range(self.stage.completions_per_prompt)]
        given = self.guide.beginnings(task, step, derive_seed(self.seed, step, task.id, "guide")) if self.guide else []
        late = self.guide is not None and self.guide.options.replace == "all_failed"
        replayed = [stored.trajectory()] if stored else []
        num_given = 0 if late else len(given)
        beginnings = [Beginning()] * (len(seeds) - len(replayed) - num_given) + given[:num_given]
        sampled = await self.trajectories(task, seeds, beginnings, (step, place))
        trajectories = [*sampled, *replayed]
        await self.rubric.score(task, trajectories)
        if late and given and not any(self.rubric.succeeded(t, self.success) for t in trajectories):
            seeds = [derive_seed(self.seed, step, place, task.id, "late guidance", k) for k in range(len(given))]
            guided = await self.trajectories(task, seeds, given, (step, place, len(beginnings)))
            kept = max(0, len(beginnings) - len(guided))  # of the policy's own, less those that failed
            self.discarded.append(Group(task, sampled[kept:]))
            await self.rubric.score(task, guided)
            trajectories = [*sampled[:kept], *guided, *replayed]
        weights = {reward.name: reward.weight for reward in self.rubric.rewards}
        combine_rewards(trajectories, weights, self.stage.combine_rewards)
        if self.stage.truncated == "penalise":
            for trajectory in trajectories:
                penalise(trajectory, self.stage.truncation_penalty)
        return Group(task, trajectories, weights)

    async def trajectories(
        self, task: Task, seeds: Sequence[int], beginnings: Sequence[Beginning], order: tuple[int, ...]
    ) -> list[Trajectory]:
        """One for each beginning, but those that failed. order: of their requests, among those of the whole run."""
        played = (
            self.trajectory(task, seed, beginning, (*order, k))
            for k, (seed, beginning) in enumerate(zip(seeds, beginnings, strict=False))
        )
        return [trajectory for trajectory in await asyncio.gather(*played) if trajectory is not None]

    async def trajectory(
        self, task: Task, seed: int, beginning: Beginning, order: tuple[int, ...]
    ) -> Trajectory | None:
        params = replace(self.stage.sampling, seed=seed)
        trajectory = await self.player.play(task, params, guidance=beginning.tokens, order=order)
        if trajectory is not None and beginning.logprobs is not None:
            trajectory.segments = [
                replace(s, logprobs=beginning.logprobs) if s.origin == "guidance" else s for s in trajectory.segments
            ]
        return trajectory

    @property
    def success(self) -> float:
        return self.stage.guidance.success if self.stage.guidance else 1.0


def penalise(trajectory: Trajectory, penalty: float) -> None:
    """A completion cut by a token limit costs `penalty`, whatever else it earned and however rewards were combined. It
    stands among the rewards under its own name, with 0 for the others: a method that takes the rewards one by one
    compares them."""
    if trajectory.reward is not None:
        cost = penalty if trajectory.truncated else 0.0
        trajectory.rewards[TRUNCATED] = 0.0 - cost
        trajectory.reward -= cost


class TaskStream:
    """The training tasks in their order, and how many were taken."""

    def __init__(self, taskset: TaskSet, seed: int, taken: int = 0) -> None:
        self.taskset, self.seed, self.taken = taskset, seed, taken
        self.tasks = tasks_from(taskset, seed, taken)

    def take(self, num: int, avoid: Collection[str] = ()) -> list[Task]:
        """The next tasks whose ids are not to be avoided; where hardly any other is left, those too."""
        chosen: list[Task] = []
        num_avoided = 0
        while len(chosen) < num:
            [task] = islice(self.tasks, 1)
            self.taken += 1
            if task.id in avoid and num_avoided < num + PATIENCE:
                num_avoided += 1
                continue
            num_avoided = 0
            chosen.append(task)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self.tasks = tasks_from(self.taskset, self.seed, self.taken)


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

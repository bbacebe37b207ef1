"""Plays tasks: one trajectory after the other, or many at once. What goes wrong inside a trajectory is its outcome and
not the end of the run: it is tried once more with a fresh environment, then dropped and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from aurify.bounds import Checked, PositiveFloat, PositiveInt
from aurify.environments.env import Environment
from aurify.environments.hosting import host_environment, is_threaded
from aurify.environments.rollout import NO_LIMITS, Limits, NoRoom, rollout
from aurify.environments.rounds import CountingSampler, InRounds
from aurify.errors import UserError
from aurify.renderer import History, Renderer
from aurify.samplers.sampler import Sampler, request_order
from aurify.threads import PerLoop, Room, TimeLimit, allow_open_files
from aurify.types import Message, Metrics, SamplingParams, Task, Trajectory

log = logging.getLogger("aurify")

ATTEMPTS = 2
FILES_EACH = 16  # open files of an environment: its event loop has 3, a tool with a process of its own up to 8
MAX_STUCK = 128  # threads that calls over their time limit still hold
Given = tuple[Sequence[int], Sequence[Message]]  # guidance and trace of a rollout
MAX_TOLD = 5  # reasons of failures that are told in a step


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Checked):
    step_seconds: PositiveFloat = 120.0  # for an environment to start, to answer a message, to close
    reward_seconds: PositiveFloat = 120.0  # for one call of a reward; of one that judges a whole group at once, too
    max_failures: PositiveInt = 64  # trajectories in a row that fail, each of them tried twice: then the run stops
    max_environments: PositiveInt = 256  # with a thread each, at the same time; further trajectories wait
    # a turn begins when all trajectories have come to it: the slowest environment holds up the others, and runs of
    # several turns are equal to the bit
    in_rounds: bool = False
    # what a later turn sees of earlier ones: what the chat template writes of them, in a further row where that is not
    # what was sampled (thoughts are dropped, say); or always the very tokens that were sampled
    history: History = "template"


class Player:
    """environment: makes one for a trajectory. max_context: None takes the sampler's, if it has one."""

    def __init__(
        self,
        environment: Callable[[Task], Environment],
        sampler: Sampler,
        renderer: Renderer,
        options: RolloutOptions | None = None,
        *,
        max_context: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.environment, self.sampler, self.renderer = environment, sampler, renderer
        self.options = options or RolloutOptions()
        self.max_context, self.limits = max_context, limits or NO_LIMITS
        num_rooms = self.options.max_environments
        self.threaded, self.rooms = is_threaded(environment), PerLoop(num_rooms)
        self.rounds = InRounds(sampler, num_rooms if self.threaded else None) if self.options.in_rounds else None
        if self.threaded:
            allow_open_files(num_rooms * FILES_EACH)
        self.num_ended = 0  # trajectories that ended well, in all
        self.counts: Counter[str] = Counter()  # since `take_counts`
        self.tokens_failed = 0  # since `take_counts`: sampled in attempts that failed
        self.in_a_row, self.last_reason = 0, ""
        self.stuck: list[Room] = []
        self.told: set[str] = set()
        self.untold: list[str] = []

    async def play(
        self,
        task: Task,
        params: SamplingParams,
        *,
        guidance: Sequence[int] = (),
        trace: Sequence[Message] = (),
        order: tuple[int, ...] = (),
    ) -> Trajectory | None:
        """None: it failed twice. Both attempts have the same seed, so what failed by chance leaves no trace. order:
        see `request_order`; guidance, trace: see `rollout`."""
        with self.rounds.seat() if self.rounds is not None else nullcontext():
            async with self.rooms.get() if self.threaded else nullcontext():
                return await self._attempts(task, params, (guidance, trace), order)

    async def _attempts(
        self, task: Task, params: SamplingParams, given: Given, order: tuple[int, ...]
    ) -> Trajectory | None:
        for attempt in range(ATTEMPTS):
            if self.in_a_row >= self.options.max_failures:
                raise self.too_many()
            self.stuck = [room for room in self.stuck if room.thread.is_alive()]
            if len(self.stuck) >= MAX_STUCK:
                raise UserError(
                    f"{len(self.stuck)} threads still work on calls of environments that took longer than "
                    f"rollouts.step_seconds ({self.options.step_seconds:g}); let the environment give up by itself, or "
                    f"raise the limit. The last trajectory that failed: {self.last_reason}"
                )
            token, sampler = request_order.set(order), CountingSampler(self.rounds or self.sampler)
            try:
                trajectory = await self._try(task, params, given, sampler)
            except Exception as error:
                log.debug("task %r failed", task.id, exc_info=True)
                self.counts["retried" if attempt + 1 < ATTEMPTS else "failed"] += 1
                self.tokens_failed += sampler.num_tokens
                self.last_reason = f"task {task.id!r}: {explain_failure(error)}"
                if attempt + 1 == ATTEMPTS:
                    self.counts[f"failed_{classify_failure(error)}"] += 1
            else:
                self.num_ended, self.in_a_row = self.num_ended + 1, 0
                for problem in trajectory.problems:
                    self._tell(problem, f"task {task.id!r}: {problem}. It is left out, and counted")
                return trajectory
            finally:
                request_order.reset(token)
        self.in_a_row += 1
        self._tell(self.last_reason.partition(": ")[2], f"a trajectory is dropped, and counted: {self.last_reason}")
        if self.in_a_row >= self.options.max_failures:
            raise self.too_many()
        return None

    async def _try(self, task: Task, params: SamplingParams, given: Given, sampler: CountingSampler) -> Trajectory:
        guidance, trace = given
        seconds = self.options.step_seconds
        async with host_environment(
            self.environment, task, seed=params.seed, seconds=seconds, stuck=self.stuck
        ) as environment:
            return await rollout(
                task,
                environment,
                sampler,
                self.renderer,
                params,
                max_context=self.max_context,
                limits=self.limits,
                guidance=guidance,
                trace=trace,
                history=self.options.history,
            )

    def too_many(self) -> UserError:
        num = max(self.in_a_row, 1)
        which = "the first trajectories" if not self.num_ended else f"the last {num} trajectories in a row"
        return UserError(f"{which} failed, each of them twice; the last one: {self.last_reason}")

    def take_counts(self) -> Metrics:
        """What failed since the last call, for the ledger."""
        counts, self.counts = self.counts, Counter()
        tokens, self.tokens_failed = self.tokens_failed, 0
        metrics = {f"ledger/{name}": float(num) for name, num in sorted(counts.items()) if "failed_" in name}
        for name in ("failed", "retried"):
            metrics[f"ledger/trajectories_{name}"] = float(counts[name])
        return metrics | {"ledger/tokens_failed": float(tokens)}

    def take_lines(self) -> list[str]:
        """What a person should be told of it: each reason once."""
        lines, self.untold = self.untold, []
        more = len(lines) - MAX_TOLD
        return lines[:MAX_TOLD] + ([f"and {more} further reasons why trajectories failed"] if more > 0 else [])

    def _tell(self, key: str, line: str) -> None:
        if key not in self.told:
            self.told.add(key)
            self.untold.append(line)


def explain_failure(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def classify_failure(error: Exception) -> str:
    return "time_limit" if isinstance(error, TimeLimit) else "no_room" if isinstance(error, NoRoom) else "error"

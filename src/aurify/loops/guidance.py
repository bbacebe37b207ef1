"""Guidance: answers of a stronger model, or of the task itself, stand in a group beside the policy's own (LUFFY,
arXiv 2504.14945). A source of trajectories and no loop: any algorithm can be given them, and what it makes of a guide's
tokens is its own matter.

A whole trace never reaches the sampler. With `prefix`, only the beginning of a trace is given, and the policy goes on
from there: the guide's tokens and the policy's own are then told apart one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aurify.bounds import Checked, PositiveInt
from aurify.data.heldout import HeldOut, heldout_tasks
from aurify.data.traces import Traces, load_traces
from aurify.errors import UserError
from aurify.rewards.rubric import Rubric
from aurify.types import Task

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet

WINDOWS = 10  # of a run, over which the random schedules move their bounds


@dataclass(frozen=True, kw_only=True)
class PrefixOptions:
    """How much of a trace is given.

    fixed: shares evenly spaced from `low` to `high` over the guided rows of a group. random: drawn between the two.
    linear: from `high` down to `low` as the run goes on. linear_max, reverse_linear: drawn between `low` and a bound
    that falls from `high`, or rises to it, in ten windows of the run."""

    schedule: Literal["fixed", "random", "linear", "linear_max", "reverse_linear"] = "linear"
    low: float = 0.0
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(f"guidance.prefix: low {self.low} and high {self.high} must be in [0, 1], in this order")

    def share(self, place: int, num: int, step: int, total: int, generator: random.Random) -> float:
        """For guided row `place` of `num`, in a step of `total`."""
        if self.schedule == "fixed":
            return self.low + (self.high - self.low) * (place / (num - 1) if num > 1 else 1.0)
        if self.schedule == "linear":
            return self.low + (self.high - self.low) * (1 - step / total)
        window = min(WINDOWS - 1, step * WINDOWS // total)
        part = {"random": 1.0, "linear_max": 1 - window / WINDOWS, "reverse_linear": (window + 1) / WINDOWS}
        return generator.uniform(self.low, self.low + (self.high - self.low) * part[self.schedule])


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(Checked):
    path: str | None = None  # a file of traces (see aurify.data.traces) ...
    demonstrations: bool = False  # ... or the answers that the task itself would give
    num_off: PositiveInt = 1  # of the completions_per_prompt, so many are a guide's
    replace: Literal["always", "all_failed"] = "always"  # all_failed: only where none of the policy's own succeeds
    max_tokens: PositiveInt | None = None  # longer traces are refused; None: sampling.max_tokens
    prefix: PrefixOptions | None = None  # give only the beginning of a trace
    success: float = 1.0  # what the task's first reward gives a right answer

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) != self.demonstrations:
            raise UserError("guidance: set one of path (a file of traces) and demonstrations (true)")
        if self.prefix is not None and self.replace == "all_failed":
            raise UserError("guidance: a prefix is given before the policy writes; it does not go with all_failed")


@dataclass(frozen=True)
class Beginning:
    """What is given of an answer; nothing of it for the policy's own."""

    tokens: Sequence[int] = ()
    logprobs: list[float] | None = None  # recorded, of these tokens


@dataclass(frozen=True)
class Guide:
    """Where the traces come from: a file that was read, or the task set."""

    options: GuidanceOptions
    renderer: Renderer
    taskset: TaskSet
    max_tokens: int
    total: int  # steps of the stage
    traces: Traces | None = None

    def beginnings(self, task: Task, step: int, seed: int) -> list[Beginning]:
        """What is given of up to `num_off` answers to a task: different traces where it has several, the whole of
        them or a prefix. Fewer, or none, where it has no trace."""
        generator, options = random.Random(seed), self.options
        known = self.known(task)
        num = options.num_off if options.prefix and known else min(options.num_off, len(known))
        chosen = generator.sample(known, min(num, len(known)))
        chosen += [generator.choice(known) for _ in range(num - len(chosen))]  # prefixes of one trace may differ
        if options.prefix is None:
            return [self.beginning(trace, len(trace)) for trace in chosen]
        shares = [options.prefix.share(place, num, step, self.total, generator) for place in range(num)]
        return [self.beginning(t, int(share * len(t))) for t, share in zip(chosen, shares, strict=True)]

    def beginning(self, trace: Sequence[int], length: int) -> Beginning:
        recorded = None if self.traces is None else self.traces.recorded.get(tuple(trace))
        return Beginning(list(trace[:length]), None if recorded is None else list(recorded[:length]))

    def known(self, task: Task) -> Sequence[Sequence[int]]:
        if self.traces is not None:
            return self.traces.of(task.prompt)
        answer = self.taskset.demonstration(task)
        if answer is None:
            return []
        tokens = self.renderer.reply(self.renderer.prompt(task.prompt), answer)
        return [tokens] if len(tokens) <= self.max_tokens else []


async def open_guide(
    stage: Any, taskset: TaskSet, renderer: Renderer, max_context: int, heldout: HeldOut | None = None
) -> Guide:
    """Reads the traces of an OnlineStage's file, if it has one, and has the task's rewards judge them. heldout: of the
    whole recipe; None: the task set's own."""
    options = stage.guidance
    assert options is not None
    max_tokens, traces = options.max_tokens or stage.sampling.max_tokens, None
    if options.path is not None:
        traces = await load_traces(
            options.path,
            renderer,
            Rubric(taskset.rubric.rewards, stage.rollouts.reward_seconds),
            heldout=heldout if heldout is not None else heldout_tasks(taskset.heldout),
            max_tokens=max_tokens,
            max_context=max_context,
            success=options.success,
        )
    return Guide(options, renderer, taskset, max_tokens, stage.steps, traces)

"""Guidance: answers of a stronger model, or of the task itself, stand in a group beside the policy's own (LUFFY,
arXiv 2504.14945). A source of trajectories and no loop: any algorithm can be given them, and what it makes of a guide's
tokens is its own matter.

A whole trace never reaches the sampler. With `prefix`, only the beginning of a trace is given, and the policy goes on
from there: the guide's tokens and the policy's own are then told apart one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from aurify.data.heldout import HeldOut, heldout_tasks
from aurify.data.traces import Trace, Traces, is_conversation, is_messages, load_traces
from aurify.environments.traces import as_messages
from aurify.errors import UserError
from aurify.pipeline.recipe import OnlineStage, PrefixOptions
from aurify.renderer.traces import render_trace
from aurify.rewards.rubric import Rubric
from aurify.types import Message, Task

if TYPE_CHECKING:
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet


@dataclass(frozen=True)
class Beginning:
    """What is given of an answer. The policy's own answers are given nothing."""

    tokens: Sequence[int] = ()
    logprobs: list[float] | None = None  # recorded, of these tokens
    trace: Sequence[Message] = ()  # instead: all that a guide and an environment said


@dataclass(frozen=True)
class Guide:
    """Gives traces for tasks: those of a file that was read, or the task set's own answers."""

    stage: OnlineStage
    renderer: Renderer
    taskset: TaskSet
    traces: Traces | None = None

    def beginnings(self, task: Task, step: int, seed: int) -> list[Beginning]:
        """What is given of up to `num_off` answers to a task: different traces where it has several, the whole of
        them or a prefix. Fewer, or none, where it has no trace."""
        options = self.stage.guidance
        assert options is not None
        generator, known = random.Random(seed), self.known_traces(task)
        num = options.num_off if options.prefix and known else min(options.num_off, len(known))
        chosen = generator.sample(known, min(num, len(known)))
        chosen += [generator.choice(known) for _ in range(num - len(chosen))]  # prefixes of one trace may differ
        if options.prefix is None:
            return [self.cut_trace(trace, len(trace)) for trace in chosen]
        if any(map(is_messages, chosen)):
            raise UserError(
                f"guidance.prefix: the traces for task {task.id!r} hold what an environment said, and are given whole; "
                "leave prefix out"
            )
        shares = [prefix_share(options.prefix, index, num, step, self.stage.steps) for index in range(num)]
        return [self.cut_trace(t, int(share * len(t))) for t, share in zip(chosen, shares, strict=True)]

    def cut_trace(self, trace: Trace, length: int) -> Beginning:
        if is_messages(trace):
            return Beginning(trace=cast("Sequence[Message]", trace))
        tokens = cast("Sequence[int]", trace)
        recorded = None if self.traces is None else self.traces.recorded.get(tuple(tokens))
        return Beginning(list(tokens[:length]), None if recorded is None else list(recorded[:length]))

    def known_traces(self, task: Task) -> Sequence[Trace]:
        if self.traces is not None:
            return self.traces.of(task.prompt)
        answer = self.taskset.demonstration(task)
        if answer is None:
            return []
        messages = as_messages(answer, self.taskset.environment)
        if is_conversation(messages):
            segments = render_trace(task.prompt, messages, self.taskset.tools, self.renderer)
            num = sum(len(segment.tokens) for segment in segments if segment.origin == "guidance")
            return [messages] if num <= max_trace_tokens(self.stage) else []
        tokens = self.renderer.reply(self.renderer.prompt(task.prompt), messages[0]["content"])
        return [tokens] if len(tokens) <= max_trace_tokens(self.stage) else []


def prefix_share(options: PrefixOptions, index: int, num: int, step: int, total: int) -> float:
    """The share of a trace that guided row `index` of `num` is given in step `step` of `total`."""
    width = options.high - options.low
    if options.schedule == "linear":
        return options.low + width * (1 - step / total)
    return options.low + width * (index / (num - 1) if num > 1 else 1.0)


def max_trace_tokens(stage: OnlineStage) -> int:
    assert stage.guidance is not None
    return stage.guidance.max_tokens or stage.sampling.max_tokens


async def open_guide(
    stage: OnlineStage,
    taskset: TaskSet,
    renderer: Renderer,
    max_context: int,
    heldout: HeldOut | None = None,
    max_judged: int | None = None,
) -> Guide:
    """Reads the traces of the stage's file, if it has one, and has the task's rewards judge them. heldout: of the whole
    recipe; None: the task set's own. max_judged: see `load_traces`."""
    options = stage.guidance
    assert options is not None
    if options.path is None:
        return Guide(stage, renderer, taskset)
    traces = await load_traces(
        options.path,
        renderer,
        Rubric(taskset.rubric.rewards, stage.rollouts.reward_seconds),
        heldout=heldout if heldout is not None else heldout_tasks(taskset.heldout),
        max_tokens=max_trace_tokens(stage),
        max_context=max_context,
        success=options.success,
        split=partial(as_messages, environment=taskset.environment),
        tools=taskset.tools,
        max_judged=max_judged,
    )
    return Guide(stage, renderer, taskset, traces)

"""Lets a policy act in an environment and keeps every token: who wrote it, and how likely it was when it was drawn.

What goes wrong is raised here; `player.py` makes it the outcome of the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

from aurify.environments.answers import Answers, check_messages
from aurify.environments.env import Environment, Observation, Step
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.sampler import Sampler, request_order
from aurify.signatures import report_crashes
from aurify.types import Datum, Message, SamplingParams, Segment, Task, Trajectory

TURN_STRIDE = 0x9E3779B97F4A7C15  # keeps the seeds of later turns away from those of neighbouring trajectories


class NoRoom(UserError):
    """A prompt that fills the context."""


async def rollout(
    task: Task,
    environment: Environment,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    *,
    max_context: int | None = None,
    max_turns: int = 16,
    guidance: Sequence[int] = (),
) -> Trajectory:
    """One trajectory. It is truncated where a completion ran into `max_tokens`, or the whole into `max_context` or
    `max_turns`. params.max_tokens counts for each turn. max_context: None takes the sampler's, if it has one.
    guidance: how a guide begins the first answer. The policy goes on from there, unless it ends with an end token."""
    params = replace(params, stop_tokens=(*params.stop_tokens, *sorted(renderer.stop_tokens)))
    if max_context is None:
        max_context = getattr(sampler, "max_context", None)
    answers = Answers()
    truncated, order = False, request_order.get()
    try:
        first = await observe(environment)
        messages, tools = first.messages, first.tools
        num_prompt_messages = len(messages)
        tokens = renderer.prompt(messages, tools)
        segments = [Segment(tokens, "prompt")]
        check_room(task, tokens, max_context, renderer)
        for turn in range(max_turns):
            reply = list(guidance) if turn == 0 else []
            if reply:
                segments.append(Segment(list(reply), "guidance"))
            finished = bool(reply) and reply[-1] in renderer.stop_tokens
            if not finished:
                room = params.max_tokens - len(reply)
                if max_context is not None:
                    room = min(room, max_context - len(tokens) - len(reply))
                if room < 1:
                    truncated = True
                    if segments[-1].origin == "environment":  # nobody read it, and it may be longer than the context
                        segments.pop()
                    break
                seed = None if params.seed is None else (params.seed + turn * TURN_STRIDE) % 2**64
                request_order.set((*order, turn))
                [completion] = await sampler.sample([*tokens, *reply], replace(params, max_tokens=room, seed=seed))
                segments.append(Segment(completion.tokens, "policy", completion.logprobs, completion.versions))
                reply += completion.tokens
                finished = completion.finish == "stop"
            before, message = messages, renderer.parse(reply)
            messages = [*before, message]
            if not finished:
                truncated = True
                break
            step = await step_of(environment, deepcopy(message))
            answers.add(step)
            if step.done:
                break
            delta = renderer.delta(before, reply, step.messages, tools)
            segments.append(Segment(delta, "environment"))
            tokens = [*tokens, *reply, *delta]
            messages = [*messages, *step.messages]
        else:
            truncated = True
    finally:
        request_order.set(order)
        try:
            await environment.close()
        except Exception as error:  # what was played stays what it is
            answers.problems.append(f"{name_of(environment)}: close() raised {type(error).__name__}: {error}")
    return Trajectory(
        segments,
        messages,
        num_prompt_messages,
        answers.rewards,
        truncated=truncated,
        metrics=answers.metrics,
        source="guidance" if guidance else "policy",
        tools=tools,
        problems=answers.problems,
    )


def check_room(task: Task, tokens: Sequence[int], max_context: int | None, renderer: Renderer) -> None:
    if max_context is not None and len(tokens) >= max_context:
        raise NoRoom(
            f"task {task.id!r}: its prompt has {len(tokens)} tokens and the context {max_context}, so there is no room "
            f"to answer {renderer.describe(tokens)}; shorten the prompt, or raise sampler.max_context if the model "
            "allows more"
        )


async def observe(environment: Environment) -> Observation:
    """What the environment shows first, as a copy: it may go on with its own lists."""
    with report_crashes(name_of(environment), type(inner_of(environment))):
        first: object = await environment.start()
    if not isinstance(first, Observation):
        raise UserError(
            f"{name_of(environment)}: start() gave a {type(first).__name__}; it must return an aurify.Observation"
        )
    check_messages(first.messages, f"{name_of(environment)}: start()")
    return Observation(deepcopy(list(first.messages)), deepcopy(list(first.tools)))


async def step_of(environment: Environment, message: Message) -> Step:
    """The environment's answer, as a copy. Assistant messages that it writes have weight 0: they are not the
    policy's."""
    with report_crashes(name_of(environment), type(inner_of(environment))):
        step: object = await environment.step(message)
    if not isinstance(step, Step):
        raise UserError(f"{name_of(environment)}: step() gave a {type(step).__name__}; it must return an aurify.Step")
    check_messages(step.messages, f"{name_of(environment)}: step()")
    messages = [
        cast(Message, {**message, "weight": 0.0}) if message["role"] == "assistant" else message
        for message in deepcopy(list(step.messages))
    ]
    return replace(step, messages=messages)


def inner_of(environment: Any) -> Any:
    """The environment itself, where it is hosted."""
    return getattr(environment, "inner", environment)


def name_of(environment: Environment) -> str:
    return f"environment {type(inner_of(environment)).__name__!r}"


def build_datum(trajectory: Trajectory, advantage: float = 0.0) -> Datum:
    """What the engine trains on: tokens of the policy weigh 1 (those of a guide too, for algorithms that imitate), all
    others 0. A guide's tokens count as certain (log-prob 0): nobody knows how likely they were to it."""
    tokens: list[int] = []
    weights: list[float] = []
    logprobs: list[float] = []
    for segment in trajectory.segments:
        trained = segment.origin in ("policy", "guidance")
        tokens += segment.tokens
        weights += [float(trained)] * len(segment.tokens)
        logprobs += segment.logprobs if trained and segment.logprobs else [0.0] * len(segment.tokens)
    sampled = all(segment.logprobs is not None for segment in trajectory.segments if segment.origin == "policy")
    origins = {segment.origin for segment in trajectory.segments}
    partly = origins >= {"policy", "guidance"}
    return Datum(
        tokens,
        weights,
        advantages=[advantage] * len(tokens),
        logprobs=logprobs if sampled else None,
        source="policy" if partly else trajectory.source,
        guided=[s.origin == "guidance" for s in trajectory.segments for _ in s.tokens] if partly else None,
    )

"""Lets a policy act in an environment and keeps every token: who wrote it, and how likely it was when it was drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from aurify.environments.env import Environment, Observation, Step
from aurify.errors import UserError
from aurify.renderer import Renderer
from aurify.samplers.sampler import Sampler
from aurify.signatures import crashes_of
from aurify.types import Datum, Message, Metrics, SamplingParams, Segment, Task, Trajectory

TURN_STRIDE = 0x9E3779B97F4A7C15  # keeps the seeds of later turns away from those of neighbouring trajectories


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
    rewards: dict[str, float] = defaultdict(float)
    metrics: Metrics = {}
    truncated = False
    try:
        observation = await observe(environment)
        messages, tools = list(observation.messages), observation.tools
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
                    break
                seed = None if params.seed is None else (params.seed + turn * TURN_STRIDE) % 2**64
                [completion] = await sampler.sample([*tokens, *reply], replace(params, max_tokens=room, seed=seed))
                segments.append(Segment(completion.tokens, "policy", completion.logprobs, completion.versions))
                reply += completion.tokens
                finished = completion.finish == "stop"
            before, message = messages, renderer.parse(reply)
            messages = [*before, message]
            if not finished:
                truncated = True
                break
            step = await step_of(environment, message)
            for name, value in step.rewards.items():
                rewards[name] += value
            metrics |= step.metrics
            if step.done:
                break
            delta = renderer.delta(before, reply, step.messages, tools)
            segments.append(Segment(delta, "environment"))
            tokens = [*tokens, *reply, *delta]
            messages = [*messages, *step.messages]
        else:
            truncated = True
    finally:
        await environment.close()
    num_prompt_messages = len(observation.messages)
    return Trajectory(
        segments,
        messages,
        num_prompt_messages,
        dict(rewards),
        truncated=truncated,
        metrics=metrics,
        source="guidance" if guidance else "policy",
    )


def check_room(task: Task, tokens: Sequence[int], max_context: int | None, renderer: Renderer) -> None:
    if max_context is not None and len(tokens) >= max_context:
        raise UserError(
            f"task {task.id!r}: its prompt has {len(tokens)} tokens and the context {max_context}, so there is no room "
            f"to answer {renderer.describe(tokens)}; shorten the prompt, or raise sampler.max_context if the model "
            "allows more"
        )


async def observe(environment: Environment) -> Observation:
    with crashes_of(name_of(environment), type(environment)):
        return await environment.start()


async def step_of(environment: Environment, message: Message) -> Step:
    with crashes_of(name_of(environment), type(environment)):
        step: object = await environment.step(message)
    if not isinstance(step, Step):
        raise UserError(f"{name_of(environment)}: step() gave a {type(step).__name__}; it must return an aurify.Step")
    return step


def name_of(environment: Environment) -> str:
    return f"environment {type(environment).__name__!r}"


def datum_of(trajectory: Trajectory, advantage: float = 0.0) -> Datum:
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

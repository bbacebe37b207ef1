"""Lets a policy act in an environment and keeps every token: who wrote it, and how likely it was when it was sampled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from aurify.environments.env import Environment
from aurify.renderer import Renderer
from aurify.samplers.sampler import Sampler
from aurify.types import Datum, Metrics, SamplingParams, Segment, Task, Trajectory


async def rollout(
    task: Task,
    environment: Environment,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    *,
    max_context: int | None = None,
    max_turns: int = 16,
) -> Trajectory:
    """One trajectory. It is truncated where a completion ran into `max_tokens`, or the whole into `max_context` or `max_turns`."""
    params = replace(params, stop_tokens=(*params.stop_tokens, *sorted(renderer.stop_tokens)))
    try:
        observation = await environment.start()
        messages, tools = list(observation.messages), observation.tools
        segments = [Segment(renderer.prompt(messages, tools), "prompt")]
        rewards: dict[str, float] = defaultdict(float)
        metrics: Metrics = {}
        truncated = False
        for turn in range(max_turns):
            tokens = [token for segment in segments for token in segment.tokens]
            room = params.max_tokens if max_context is None else min(params.max_tokens, max_context - len(tokens))
            if room < 1 and turn > 0:
                truncated = True
                break
            seed = None if params.seed is None else params.seed + turn
            [completion] = await sampler.sample(tokens, replace(params, max_tokens=max(1, room), seed=seed))
            segments.append(Segment(completion.tokens, "policy", completion.logprobs, completion.versions))
            message = renderer.parse(completion.tokens)
            before, messages = messages, [*messages, message]
            if completion.finish == "length":
                truncated = True
                break
            step = await environment.step(message)
            for name, value in step.rewards.items():
                rewards[name] += value
            metrics |= step.metrics
            if step.done:
                break
            segments.append(Segment(renderer.delta(before, completion.tokens, step.messages, tools), "environment"))
            messages = [*messages, *step.messages]
        else:
            truncated = True
    finally:
        await environment.close()
    return Trajectory(segments, messages, len(observation.messages), dict(rewards), truncated=truncated, metrics=metrics)


def datum_of(trajectory: Trajectory, advantage: float = 0.0) -> Datum:
    """What the engine trains on: tokens of the policy weigh 1 (of a guide too, where the algorithm imitates), all others 0."""
    tokens: list[int] = []
    weights: list[float] = []
    logprobs: list[float] = []
    for segment in trajectory.segments:
        trained = segment.origin in ("policy", "guidance")
        tokens += segment.tokens
        weights += [float(trained)] * len(segment.tokens)
        logprobs += segment.logprobs if trained and segment.logprobs else [0.0] * len(segment.tokens)
    sampled = all(segment.logprobs for segment in trajectory.segments if segment.origin == "policy")
    return Datum(
        tokens,
        weights,
        advantages=[advantage] * len(tokens),
        logprobs=logprobs if sampled else None,
        source=trajectory.source,
    )

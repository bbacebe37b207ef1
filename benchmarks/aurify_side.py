"""Our side: the four verbs and the in-process sampler, as the loops call them."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from side import Channel, Step, serve
from work import ALPHA, GRPO_TOKENS, LR, NUM_COMPLETIONS, RANK, REWARDS, SAMPLE_TOKENS, Reward, Row, Work

from aurify.algorithms.dpo import DPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.models.model import ModelConfig, load_model
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Completion, Datum, Group, SamplingParams, Segment, Task, Trajectory


def main(case: str, model_path: str, work_path: str, dtype: str) -> None:
    channel = Channel()
    method, _, kind = case.partition("-")
    work = Work.read(Path(work_path))
    model = load_model(ModelConfig(model_path, dtype=dtype))  # type: ignore[arg-type]
    lora = LoraConfig(rank=RANK, alpha=ALPHA) if kind == "lora" else None
    engine = Engine(model, lora=lora, trainable=method != "sample")
    methods = {"sft": sft, "dpo": dpo, "sample": sample}
    methods |= {name: partial(grpo, reward) for name, reward in REWARDS.items()}
    serve(channel, methods[method](engine, work))


def datum(prompt: list[int], answer: list[int], unit: int = -1) -> Datum:
    return Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer), unit=unit)


def pair(row: Row, unit: int) -> list[Datum]:
    return [datum(row.prompt, answer, unit) for answer in (row.chosen, row.rejected)]


def sft(engine: Engine, work: Work) -> Step:
    data = [datum(row.prompt, row.chosen) for row in work.rows]

    def step() -> dict[str, float]:
        metrics = engine.forward_backward(data, SFT())
        engine.optim_step(LR)
        computed = metrics["ledger/tokens_computed"]
        return {"tokens": float(sum(len(one.tokens) for one in data)), "computed": computed}

    return step


def dpo(engine: Engine, work: Work) -> Step:
    """With the reference log-probs inside the step, as TRL does it; a row of one epoch costs the same either way."""
    engine.keep_reference()
    data = [one for unit, row in enumerate(work.rows) for one in pair(row, unit)]

    def step() -> dict[str, float]:
        reference = engine.logprobs(data, reference=True)
        batch = [replace(one, ref_logprobs=values) for one, values in zip(data, reference, strict=True)]
        metrics = engine.forward_backward(batch, DPO())
        engine.optim_step(LR)
        computed = metrics["ledger/tokens_computed"]
        return {"tokens": float(sum(len(one.tokens) for one in data)), "computed": computed}

    return step


def grpo(reward: Reward, engine: Engine, work: Work) -> Step:
    sampler, algorithm, numbers = InProcessSampler(engine), GRPO(), itertools.count()

    async def collect() -> list[Group]:
        number = next(numbers)
        return await asyncio.gather(*(group(place, number) for place in range(len(work.prompts))))

    async def group(place: int, number: int) -> Group:
        prompt = work.prompts[place]
        params = SamplingParams(max_tokens=GRPO_TOKENS, seed=number * len(work.prompts) + place)
        completions = await sampler.sample(prompt, params, NUM_COMPLETIONS)
        return Group(Task(str(place), []), [trajectory(place, completion) for completion in completions])

    def trajectory(place: int, completion: Completion) -> Trajectory:
        prompt, answer = work.prompts[place], work.answers[place]
        segments = [Segment(prompt, "prompt"), Segment(completion.tokens, "policy", completion.logprobs)]
        score = reward(completion.tokens, engine.tokenizer.decode(completion.tokens), answer)
        return Trajectory(segments, [], 0, reward=score)

    def step() -> dict[str, float]:
        begin = time.perf_counter()
        groups = asyncio.run(collect())
        sampled = time.perf_counter()
        data = [
            Datum(
                one.tokens,
                [0.0] * len(one.segments[0].tokens) + [1.0] * one.num_policy_tokens,
                advantages=[advantage] * len(one.tokens),
                logprobs=[0.0] * len(one.segments[0].tokens) + (one.segments[1].logprobs or []),
            )
            for group, row in zip(groups, algorithm.advantages(groups), strict=True)
            if any(row)  # as the loop does
            for one, advantage in zip(group.trajectories, row, strict=True)
        ]
        if data:
            engine.forward_backward(data, algorithm)
            engine.optim_step(LR)
        asyncio.run(sampler.load_weights(engine.weights(), engine.version))
        num = float(sum(one.num_policy_tokens for group in groups for one in group.trajectories))
        return {
            "tokens": num,
            "groups": len(data) / NUM_COMPLETIONS,
            "sampling": sampled - begin,
            "training": time.perf_counter() - sampled,
        }

    return step


def sample(engine: Engine, work: Work) -> Step:
    sampler = InProcessSampler(engine, max_batch=len(work.samples))
    sampler.stop_tokens = frozenset()  # every sequence gets all its tokens

    async def collect() -> list[list[Completion]]:
        params = SamplingParams(max_tokens=SAMPLE_TOKENS)
        return await asyncio.gather(*(sampler.sample(prompt, params) for prompt in work.samples))

    def step() -> dict[str, float]:
        return {"tokens": float(sum(len(one.tokens) for row in asyncio.run(collect()) for one in row))}

    return step


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What must hold of the sampler on every device; see gpu_correct.py."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gpu_finding import FACTOR, FLOORS, LORA, Finding, copy_model, distributions, expect_packed, plain_engines
from gpu_models import DTYPES, VOCABULARY, Card, make_data, make_tree, make_variant, summarise
from torch import Tensor

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Completion, Datum, SamplingParams


def check_sampler(name: str, dtype: str, card: Card, *, lora: bool, vocabulary: int = VOCABULARY) -> Finding:
    """The sampler's log-probs are the trainer's, greedy and at temperatures, alone and among many, while sequences
    come and go; and what it draws is as likely as it says."""
    finding = Finding()
    model = make_variant(name, DTYPES[dtype], card.device, vocabulary=vocabulary)
    engine = Engine(copy_model(model), lora=LORA if lora else None, micro_batch_tokens=4096)
    if lora:  # a fresh adapter changes nothing
        data = make_data(make_tree(200, vocabulary))
        for _ in range(2):
            engine.forward_backward(data, SFT())
            engine.optim_step(0.02)
    with tempfile.TemporaryDirectory() as folder:
        if lora:
            engine.export(folder)
            model = replace(model, adapter=Path(folder))
        padded, single = plain_engines(model, lora=LORA if lora else None, trainable=False)
    expect_packed(finding, engine, card)
    requests = make_requests(vocabulary)
    for label, max_batch, chosen in (("alone", 1, requests[:3]), ("many", 32, requests)):
        completions = asyncio.run(sample_all(engine, chosen, max_batch))
        compare_sampled(finding, label, dtype, (engine, padded, single), chosen, completions)
    return finding


Request = tuple[list[int], SamplingParams]


def make_requests(vocabulary: int, num: int = 48) -> list[Request]:
    """Prompts of which some begin alike, and completions of many lengths, so that slots become free at any time."""
    generator = np.random.default_rng(0)
    system = list(map(int, generator.integers(0, vocabulary, 20)))
    found: list[Request] = []
    for k in range(num):
        prompt = list(map(int, generator.integers(0, vocabulary, 5 + 3 * k)))
        params = SamplingParams(max_tokens=(7, 33, 19)[k % 3], temperature=(1.0, 0.0, 1.0, 0.7)[k % 4], seed=k)
        found.append((system + prompt if k % 2 else prompt, params))
    return found


async def sample_all(engine: Engine, requests: Sequence[Request], max_batch: int) -> list[Completion]:
    sampler = InProcessSampler(engine, max_batch=max_batch)
    sampler.stop_tokens = frozenset()  # every sequence gets all its tokens
    try:
        results = await asyncio.gather(*(sampler.sample(prompt, params) for prompt, params in requests))
    finally:
        await sampler.close()
    return [completion for [completion] in results]


def compare_sampled(
    finding: Finding,
    label: str,
    dtype: str,
    engines: tuple[Engine, Engine, Engine],
    requests: Sequence[Request],
    completions: Sequence[Completion],
) -> None:
    """engines: the trainer, and two plain ones with the same weights."""
    gaps: list[Tensor] = []
    usual: list[Tensor] = []
    for temperature in sorted({params.temperature for _, params in requests}):
        kept = [k for k, (_, params) in enumerate(requests) if params.temperature == temperature]
        data = [make_answer(requests[k][0], completions[k].tokens) for k in kept]
        for k in kept:
            wanted, got = requests[k][1].max_tokens, len(completions[k].tokens)
            finding.expect(got == wanted, f"{label}: a completion has {got} tokens instead of {wanted}")
        trainer, padded, single = (chosen_logprobs(engine, data, temperature or 1.0) for engine in engines)
        sampled = torch.tensor([value for k in kept for value in completions[k].logprobs], dtype=torch.float64)
        gaps += [trainer - sampled]
        usual += [single - padded]
        if temperature == 1.0 and len(sampled) >= 200:
            expect_likely(finding, label, engines[1], data)
        if temperature == 0.0:
            lag = behind_best(engines[1], data)
            bound = FACTOR * float(summarise(single - padded)["p99"]) + 10 * FLOORS[dtype]
            finding.expect(lag <= bound, f"{label}: a greedy token is {lag:.2g} less likely than the best one")
    gap, spread = torch.cat(gaps), torch.cat(usual)
    found = {"gap": float(gap.abs().mean()), "ratio_squared": float((2 * gap).exp().mean())}
    plain = {"gap": float(spread.abs().mean()), "ratio_squared": float((2 * spread).exp().mean())}
    finding.measured[label] = {"found": found, "usual": plain, "tokens": len(gap)}
    finding.expect_close(f"sampler against trainer, {label}", {"gap": found["gap"]}, plain, dtype)
    excess, bound = abs(found["ratio_squared"] - 1), FACTOR**2 * abs(plain["ratio_squared"] - 1) + 2 * FLOORS[dtype]
    finding.expect(excess <= bound, f"{label}: mean ratio squared is {found['ratio_squared']:.4f}, {bound:.2g} allowed")
    finding.told += f"; {label}: gap {found['gap']:.1e} ({plain['gap']:.1e}), ratio^2 {found['ratio_squared']:.5f}"


def make_answer(prompt: list[int], answer: list[int]) -> Datum:
    return Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))


def chosen_logprobs(engine: Engine, data: Sequence[Datum], temperature: float) -> Tensor:
    return select_trained(engine.logprobs(data, temperature=temperature), data)


def select_trained(values: list[list[float]], data: Sequence[Datum]) -> Tensor:
    chosen = [
        value for row, one in zip(values, data, strict=True) for value, w in zip(row, one.weights, strict=True) if w
    ]
    return torch.tensor(chosen, dtype=torch.float64)


def expect_likely(finding: Finding, label: str, engine: Engine, data: Sequence[Datum]) -> None:
    """Tokens drawn from a distribution have a log-prob of minus its entropy on average, and the probability of all
    tokens before them in the vocabulary, with half of their own, is a half on average."""
    surplus: list[Tensor] = []
    ranks: list[Tensor] = []
    for predicted, answer in answers(engine, data):
        chosen = predicted.gather(1, answer[:, None])
        probabilities = predicted.exp()
        surplus.append(chosen.squeeze(1) - (probabilities * predicted).sum(1))
        below = (probabilities.cumsum(1) - probabilities / 2).gather(1, answer[:, None])
        ranks.append(below.squeeze(1) - 0.5)
    for name, values in (("log-prob", torch.cat(surplus)), ("rank", torch.cat(ranks))):
        deviations = float(values.mean() / (values.std() / len(values) ** 0.5))
        finding.measured[f"{label}_{name}_deviations"] = deviations
        finding.expect(
            abs(deviations) < 5, f"{label}: the {name} of drawn tokens is {deviations:.1f} standard errors off"
        )


def answers(engine: Engine, data: Sequence[Datum]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each sequence the distributions [tokens, vocabulary] that predict its trained end, and those tokens."""
    for datum in data:
        logprobs = distributions(engine, [datum.tokens], share=False).double()
        start = next(k for k, weight in enumerate(datum.weights) if weight)
        yield logprobs[start - 1 : -1], torch.tensor(datum.tokens[start:], device=logprobs.device)


def behind_best(engine: Engine, data: Sequence[Datum]) -> float:
    """How much less likely, at most, a trained token is than the likeliest one, in nats."""
    worst = 0.0
    for predicted, answer in answers(engine, data):
        chosen = predicted.gather(1, answer[:, None]).squeeze(1)
        worst = max(worst, float((predicted.max(1).values - chosen).max()))
    return worst


def check_seeds(name: str, dtype: str, card: Card) -> Finding:
    """The same request and seed give the same tokens, whatever else is in the batch. In bf16 rounding depends on the
    batch and may decide between two tokens; there the same batch must give the same tokens again."""
    finding = Finding()
    engine = Engine(make_variant(name, DTYPES[dtype], card.device), trainable=False)
    requests = make_requests(VOCABULARY, 24)
    many = asyncio.run(sample_all(engine, requests, 32))
    if dtype == "float32":
        few = asyncio.run(sample_all(engine, requests, 5))
        alone = [asyncio.run(sample_all(engine, [request], 1))[0] for request in requests[:6]]
        differing = sum(one.tokens != two.tokens for one, two in zip(many + many[:6], few + alone, strict=True))
        finding.expect(differing == 0, f"{differing} of 30 completions depend on the batch")
    again = asyncio.run(sample_all(engine, requests, 32))
    differing = sum(one.tokens != two.tokens for one, two in zip(many, again, strict=True))
    finding.expect(differing == 0, f"{differing} of 24 completions differ when they are sampled again")
    prompt, params = requests[2]
    others = asyncio.run(sample_all(engine, [(prompt, replace(params, seed=seed)) for seed in range(8)], 8))
    distinct = len({tuple(one.tokens) for one in others})
    finding.expect(distinct >= 7, f"8 seeds gave {distinct} different completions")
    finding.told = f"{distinct} different completions of 8 seeds"
    return finding

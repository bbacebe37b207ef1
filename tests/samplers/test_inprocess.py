"""The embedded sampler against the engine that it shares its weights with."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from models import random_engine as engine_of
from models import random_model

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Datum, SamplingParams

PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [100, 101, 102, 103, 104, 105], [5, 6, 7, 8, 9, 10, 11]]
ARCHITECTURES = [("Llama", {}), ("Mistral", {"sliding_window": 8}), ("Gemma2", {"sliding_window": 8, "head_dim": 16})]


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def run(engine: Engine, body, **options):
    """`await body(sampler)` with a sampler that is closed afterwards."""

    async def main():
        sampler = InProcessSampler(engine, **options)
        try:
            return await body(sampler)
        finally:
            await sampler.close()

    return asyncio.run(main())


def sample_all(engine, params, n=3, prompts=PROMPTS, **options):
    async def body(sampler):
        return await asyncio.gather(*(sampler.sample(prompt, params, n) for prompt in prompts))

    return run(engine, body, **options)


@DTYPES
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_logprobs_are_the_trainers(architecture, options, lora, dtype):
    """T8: at the sampling temperature; with few slots, so that sequences wait, leave and take each other's places."""
    engine = engine_of(architecture, lora, dtype, **options)
    params = SamplingParams(max_tokens=20, temperature=0.7, seed=1)
    results = sample_all(engine, params, max_batch=5)
    gaps = []
    for prompt, completions in zip(PROMPTS, results, strict=True):
        for completion in completions:
            weights = [0.0] * len(prompt) + [1.0] * len(completion.tokens)
            [expected] = engine.logprobs([Datum(prompt + completion.tokens, weights)], temperature=0.7)
            gaps += [abs(x - y) for x, y in zip(completion.logprobs, expected[len(prompt) :], strict=True)]
    # fp32: sums in another order. Otherwise logits are rounded; those of these tiny models are about 0.2
    unit = torch.finfo(dtype).eps
    assert max(gaps) < 1e-4 if dtype == torch.float32 else (max(gaps) < 4 * unit and sum(gaps) / len(gaps) < unit / 2)


@DTYPES
def test_the_same_request_gives_the_same_tokens_in_any_company(dtype):
    engine = engine_of(dtype=dtype)
    params = SamplingParams(max_tokens=30, seed=3)
    together = sample_all(engine, params, max_batch=4)
    alone = [sample_all(engine, params, prompts=[prompt])[0] for prompt in PROMPTS]
    assert [[c.tokens for c in row] for row in together] == [[c.tokens for c in row] for row in alone]
    assert len({tuple(c.tokens) for c in together[0]}) == 3, "the completions of a request differ"
    other = sample_all(engine, SamplingParams(max_tokens=30, seed=4))
    assert [c.tokens for c in other[0]] != [c.tokens for c in together[0]]


def test_greedy_equals_the_arg_max_of_the_model():
    """T24"""
    engine = engine_of()
    [[completion]] = sample_all(engine, SamplingParams(max_tokens=12, temperature=0.0), n=1, prompts=PROMPTS[:1])
    tokens = list(PROMPTS[0])
    engine.module.config._attn_implementation = "sdpa"
    with torch.no_grad():
        for _ in completion.tokens:
            tokens.append(int(engine.module(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert completion.tokens == tokens[len(PROMPTS[0]) :]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_new_weights_change_the_tokens_and_their_version(n, lora):
    engine = engine_of(lora=lora)
    data = [Datum([*PROMPTS[0], 42, 43, 44], [0.0] * 4 + [1.0] * 3)]
    params = SamplingParams(max_tokens=10, temperature=0.0)

    async def body(sampler):
        before, *_ = await sampler.sample(PROMPTS[0], params, n)
        for _ in range(15):
            engine.forward_backward(data, SFT())
            engine.optim_step(1e-2)
        unannounced, *_ = await sampler.sample(PROMPTS[0], params, n)
        assert unannounced.tokens[:3] == [42, 43, 44] and set(unannounced.versions) == {0}
        await sampler.load_weights(engine.weights(), engine.version)
        after, *_ = await sampler.sample(PROMPTS[0], params, n)
        return before, after

    before, after = run(engine, body)
    assert before.tokens != after.tokens
    assert after.tokens[:3] == [42, 43, 44]
    assert set(before.versions) == {0} and set(after.versions) == {15}


def test_samples_while_training_goes_on():
    """Two threads, one model: tokens carry the version they came from, and neither side fails."""
    engine = engine_of(lora=LoraConfig(rank=4))
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            engine.forward_backward([Datum([1, 2, 3, 4], [0.0, 1.0, 1.0, 1.0])], SFT())
            engine.optim_step(1e-3)

    async def body(sampler):
        thread = threading.Thread(target=train)
        thread.start()
        rounds = []
        while not rounds or (engine.version < 3 and len(rounds) < 500):
            rounds.append(await sampler.sample(PROMPTS[0], SamplingParams(max_tokens=15), n=4))
            await sampler.load_weights(engine.weights(), engine.version)
        stop.set()
        thread.join()
        return rounds

    rounds = run(engine, body)
    assert all(len(c.tokens) == len(c.logprobs) == len(c.versions) for row in rounds for c in row)
    assert max(v for row in rounds for c in row for v in c.versions) <= engine.version


@DTYPES
def test_stop_strings_end_tokens_and_lengths(dtype):
    engine = engine_of(dtype=dtype)
    engine.module.get_output_embeddings().weight.data[65] = 0.0
    [[free]] = sample_all(engine, SamplingParams(max_tokens=30, seed=0), n=1, prompts=PROMPTS[:1])
    text = engine.tokenizer.decode(free.tokens[:6])
    [[stopped]] = sample_all(engine, SamplingParams(max_tokens=30, seed=0, stop=(text[-2:],)), n=1, prompts=PROMPTS[:1])
    assert stopped.finish == "stop"
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert text[-2:] in engine.tokenizer.decode(stopped.tokens)
    [[ended]] = sample_all(
        engine, SamplingParams(max_tokens=30, seed=0, stop_tokens=(free.tokens[4],)), n=1, prompts=PROMPTS[:1]
    )
    assert ended.finish == "stop" and ended.tokens == free.tokens[: free.tokens.index(free.tokens[4]) + 1]
    [[short]] = sample_all(engine, SamplingParams(max_tokens=3, seed=0), n=1, prompts=PROMPTS[:1])
    assert short.finish == "length" and len(short.tokens) == 3


def test_the_context_bounds_prompt_and_completion():
    engine = engine_of(max_position_embeddings=16)
    [[completion]] = sample_all(engine, SamplingParams(max_tokens=100, seed=0), n=1, prompts=[[5] * 10])
    assert completion.finish == "length" and len(completion.tokens) == 6
    with pytest.raises(UserError, match="16 tokens"):
        sample_all(engine, SamplingParams(), n=1, prompts=[[5] * 16])


@pytest.mark.parametrize("calls", [0, 1, 30])
def test_a_failure_in_the_worker_reaches_all_callers_and_the_next_one_is_served(calls, monkeypatch):
    """Whether it fails at first use, in a prefill or in a step, with others in flight and waiting."""
    engine = engine_of()
    engine.body.packs  # noqa: B018

    async def body(sampler):
        rotary = engine.body.decoder.rotary_emb
        plain, left = rotary.forward, iter(range(calls))
        if calls:
            sampler.prepare()

        def forward(*args, **options):
            if next(left, None) is None:
                raise ZeroDivisionError("as it happens")
            return plain(*args, **options)

        monkeypatch.setattr(rotary, "forward", forward)
        params = SamplingParams(max_tokens=40, seed=0)
        asked = (sampler.sample(prompt, params, 2) for prompt in PROMPTS)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(result, ZeroDivisionError) for result in results)
        assert sampler.decoder is None or sampler.decoder.cache.num_bytes == 0
        monkeypatch.undo()
        return await sampler.sample(PROMPTS[0], params, 2)

    again = run(engine, body, max_batch=3)
    [expected] = sample_all(engine_of(), SamplingParams(max_tokens=40, seed=0), n=2, prompts=PROMPTS[:1])
    assert [c.tokens for c in again] == [c.tokens for c in expected]


def test_a_reward_model_has_nothing_to_sample():
    with pytest.raises(UserError, match="scalar head"):
        InProcessSampler(Engine(random_model(scalar_head=True)))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_cores_that_decode_side_by_side_draw_the_same(lora, monkeypatch):
    """Requests of different lengths, of which some end early: parts change as sequences leave."""
    monkeypatch.setattr("aurify.samplers.executors.PART", 3)
    held, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            engine = Engine(random_model(), lora=lora)
            sampler = InProcessSampler(engine, max_batch=20)
            assert sampler.prepare().executor.parts == threads

            async def ask(sampler=sampler):
                params = [SamplingParams(max_tokens=5 + 4 * k, seed=k) for k in range(5)]
                return await asyncio.gather(*(sampler.sample([3 + k] * (4 + k), p, 5) for k, p in enumerate(params)))

            found.append([completion for group in asyncio.run(ask()) for completion in group])
            assert (sampler.decoder.executor.cores is None) == (threads == 1)
            asyncio.run(sampler.close())
    finally:
        torch.set_num_threads(held)
    for alone, beside in zip(*found, strict=True):
        assert alone.tokens == beside.tokens
        assert alone.logprobs == pytest.approx(beside.logprobs, abs=1e-5)

"""Models without packed rows are still sampled in batches: by layouts where that is right, and otherwise with the
model's own cache, prompts of one length at a time."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch
from models import random_model

from aurify.algorithms.sft import SFT
from aurify.engine.attention import IMPLEMENTATION
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.samplers.continuous import Continuous
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.recurrent import SameLength
from aurify.types import Datum, SamplingParams

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
MAMBA = {"num_attention_heads": None, "num_key_value_heads": None, "state_size": 8, "residual_in_fp32": False}
PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [100, 101, 102, 103], [5, 6, 7, 8, 9, 10]]


def make_engine(architecture="Mamba", dtype=torch.float32, packing=True, lora=None, **options) -> Engine:
    if architecture == "Mamba":
        options = MAMBA | options
    model = random_model(architecture, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.module.to(dtype)
    return Engine(model, packing=packing, lora=lora)


def sample_all(engine, params, n=3, prompts=PROMPTS, made=SameLength, **options):
    async def main():
        sampler = InProcessSampler(engine, **options)
        assert isinstance(sampler.prepare(), made)
        try:
            return await asyncio.gather(*(sampler.sample(prompt, params, n) for prompt in prompts))
        finally:
            await sampler.close()

    return asyncio.run(main())


def count_calls(module, monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the token ids that the module is called with."""
    shapes, plain = [], module.forward

    def forward(*args, **options):
        shapes.append(tuple(options["input_ids"].shape))
        return plain(*args, **options)

    monkeypatch.setattr(module, "forward", forward)
    return shapes


def tokens_of(results):
    return [[completion.tokens for completion in group] for group in results]


def test_prompts_of_one_length_make_a_batch_that_draws_what_one_by_one_would(monkeypatch, caplog):
    engine, params = make_engine(), SamplingParams(max_tokens=12, seed=3, stop_tokens=tuple(range(60, 90)))
    with caplog.at_level(logging.WARNING, "aurify"):
        alone = sample_all(engine, params, max_batch=1)
    [record] = [record for record in caplog.records if "the model's own cache" in record.getMessage()]
    assert "MambaForCausalLM" in record.getMessage()
    shapes = count_calls(engine.body.decoder, monkeypatch)
    together = sample_all(engine, params)
    assert tokens_of(together) == tokens_of(alone)
    for one, other in zip(together, alone, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.finish == theirs.finish
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert {c.finish for group in together for c in group} == {"stop", "length"}
    lengths = [[len(c.tokens) for c in group] for group in together]
    # two prompts of four tokens, then that of three, then that of six: each batch until its longest row is through
    steps = [max(lengths[0] + lengths[2]), max(lengths[1]), max(lengths[3])]
    batches = [(6, 4), (3, 3), (3, 6)]
    expected = [shape for (rows, length), num in zip(batches, steps, strict=True)
                for shape in [(rows, length)] + [(rows, 1)] * (num - 1)]  # fmt: skip
    assert shapes[-len(expected) :] == expected


@DTYPES
def test_logprobs_are_the_trainers(dtype):
    """It has a state that every token changes: a step that began anew would be far away."""
    engine = make_engine(dtype=dtype)
    params = SamplingParams(max_tokens=16, temperature=0.7, seed=1)
    gaps = []
    for prompt, completions in zip(PROMPTS, sample_all(engine, params), strict=True):
        for completion in completions:
            weights = [0.0] * len(prompt) + [1.0] * len(completion.tokens)
            [expected] = engine.logprobs([Datum(prompt + completion.tokens, weights)], temperature=0.7)
            gaps += [abs(x - y) for x, y in zip(completion.logprobs, expected[len(prompt) :], strict=True)]
    assert sum(gaps) / len(gaps) < (1e-5 if dtype == torch.float32 else 2**-5)


def test_cancelled_rows_and_stop_strings_leave_the_others_alone():
    engine = make_engine()
    params = SamplingParams(max_tokens=25, seed=3)
    expected = sample_all(engine, params, n=1)

    async def main():
        sampler = InProcessSampler(engine)
        heard = asyncio.Event()
        kept = asyncio.create_task(sampler.sample(PROMPTS[0], params))
        left = asyncio.create_task(sampler.sample(PROMPTS[2], params, on_token=lambda token: heard.set()))
        await heard.wait()
        left.cancel()
        late = asyncio.create_task(sampler.sample(PROMPTS[3], params))
        results = [await kept, await late]
        await sampler.close()
        return results

    assert tokens_of(asyncio.run(main())) == tokens_of([expected[0], expected[3]])
    text = engine.tokenizer.decode(expected[0][0].tokens[:6])
    stopping = SamplingParams(max_tokens=25, seed=3, stop=(text[-2:],))
    [[stopped]] = sample_all(engine, stopping, n=1, prompts=PROMPTS[:1])
    assert stopped.finish == "stop" and stopped.tokens == expected[0][0].tokens[: len(stopped.tokens)]


@DTYPES
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["Llama", "Olmo2"])
def test_a_model_that_hands_layouts_down_is_batched_as_always(architecture, lora, dtype):
    params = SamplingParams(max_tokens=20, seed=3)
    engine = make_engine(architecture, dtype, packing=False, lora=lora)
    shapes = []
    engine.body.decoder.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    found = sample_all(engine, params, made=Continuous)
    assert ((12, 1) in shapes) == (architecture == "Olmo2"), "Llama's steps are of our own"
    assert engine.module.config._attn_implementation == "sdpa", "the trainer's rows stay as they were"
    expected = sample_all(make_engine(architecture, dtype, lora=lora), params, made=Continuous)
    if dtype == torch.float32:
        assert tokens_of(found) == tokens_of(expected)
    [datum] = [Datum([*PROMPTS[0], 42, 43, 44], [0.0] * 4 + [1.0] * 3)]
    for _ in range(25):
        engine.forward_backward([datum], SFT())
        engine.optim_step(1e-2)
    learnt = sample_all(engine, SamplingParams(max_tokens=3, temperature=0.0), n=1, made=Continuous)
    assert learnt[0][0].tokens == [42, 43, 44], "weights are shared"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_for_layouts_holds_no_weights_of_its_own(dtype):
    engine = make_engine("Llama", packing=False, lora=LoraConfig(rank=4), dtype=dtype)
    sampler = InProcessSampler(engine)
    decoder = sampler.prepare().decoder
    mine = {name: tensor.data_ptr() for name, tensor in engine.body.decoder.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in decoder.state_dict().items()} == mine
    assert decoder.config._attn_implementation == IMPLEMENTATION
    pairs = zip(engine.adapter.layers.values(), decoder.layers[0].self_attn.children(), strict=False)
    for one, other in list(pairs)[:4]:
        assert one.merged is other.merged and one.state is other.state
        for held, shared in zip(one.rounded or (), other.rounded or (), strict=True):
            assert held is shared
        assert (one.rounded is None) == (dtype == torch.float32)
    asyncio.run(sampler.close())


def test_a_hybrid_whose_layouts_would_forget_its_state_is_found_out(caplog):
    """Attention takes the layout, the other layers know nothing of it: decoded token by token they would begin anew."""
    engine = make_engine(
        "Lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64, block_multiple_of=32, conv_L_cache=3
    )
    with caplog.at_level(logging.WARNING, "aurify"):
        results = sample_all(engine, SamplingParams(max_tokens=16, seed=1))
    assert "its distributions differ" in caplog.text
    for prompt, completions in zip(PROMPTS, results, strict=True):
        for completion in completions:
            weights = [0.0] * len(prompt) + [1.0] * len(completion.tokens)
            [expected] = engine.logprobs([Datum(prompt + completion.tokens, weights)])
            assert completion.logprobs == pytest.approx(expected[len(prompt) :], abs=1e-3)

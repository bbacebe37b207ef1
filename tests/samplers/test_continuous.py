"""Continuous batching below the asynchronous side: blocks of steps, executors, the cache's budget, what crosses to the
host."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import random_model
from torch.utils._python_dispatch import TorchDispatchMode

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.samplers.continuous import Continuous
from aurify.samplers.executors import CoresExecutor, GraphExecutor, decode_batch_bucket, decode_length_bucket
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.request import Sequence
from aurify.samplers.slots import Slots, StepOptions, pair_slot_moves
from aurify.samplers.step import PlainStep, prepare_layouts
from aurify.types import Datum, SamplingParams

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
PROMPTS = [[5, 6, 7, 8], [5, 6, 9], [100, 101, 102, 103, 104, 105], [5, 6, 7, 8, 9, 10, 11]]
ALL = StepOptions(temperature=True, greedy=True, filters=True)
MIXED = [
    SamplingParams(max_tokens=23, seed=1),
    SamplingParams(max_tokens=9, temperature=0.6, seed=2, stop=("a", "e")),
    SamplingParams(max_tokens=17, temperature=0.0),
    SamplingParams(max_tokens=30, top_k=20, top_p=0.9, seed=4, stop_tokens=tuple(range(40, 60))),
]


def make_engine(dtype: torch.dtype = torch.float32, lora: LoraConfig | None = None, **options) -> Engine:
    model = random_model("Llama", **options)
    model.module.to(dtype)
    return Engine(model, lora=lora)


class Recorded(GraphExecutor):
    """The executor of a GPU where a graph is the step itself, called again."""

    def __init__(self, steps: int, fails: bool = False) -> None:
        super().__init__(self.repeat, steps)
        self.fails, self.captured, self.forgotten = fails, 0, 0

    def repeat(self, step, pool):
        self.captured += 1
        step()  # as to warm up: the state must not notice
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return step

    def forget(self):
        self.forgotten += len(self.graphs) > 0
        super().forget()


def make_sampler(engine, executor=None, **options) -> InProcessSampler:
    sampler = InProcessSampler(engine, **options)
    made = sampler.prepare()
    assert isinstance(made, Continuous)
    if executor is not None:
        sampler.decoder = Continuous(
            engine, made.decoder, made.cache, made.step, sampler.max_batch, sampler.cache_bytes, executor
        )
    return sampler


def sample(sampler, asked, n=2, close=True):
    """asked: pairs of prompt and params."""

    async def main():
        try:
            return await asyncio.gather(*(sampler.sample(prompt, params, n) for prompt, params in asked))
        finally:
            if close:
                await sampler.close()

    return asyncio.run(main())


def tokens_of(results):
    return [[completion.tokens for completion in group] for group in results]


@DTYPES
@pytest.mark.parametrize("steps", [1, 4])
def test_a_block_of_steps_draws_what_single_steps_draw(steps, dtype):
    """With prompts that wait, rows that stop in the middle of a block, and every option in one batch."""
    engine, asked = make_engine(dtype), list(zip(PROMPTS, MIXED, strict=True))
    expected = sample(make_sampler(engine, CoresExecutor(5), max_batch=5), asked)
    executor = Recorded(steps)
    found = sample(make_sampler(engine, executor, max_batch=5), asked)
    assert tokens_of(found) == tokens_of(expected) and executor.captured > 0
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert (mine.finish, mine.versions) == (theirs.finish, theirs.versions)
            # batches are padded to a bucket there, so products may sum otherwise
            tolerance = 1e-5 if dtype == torch.float32 else 2**-7
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=tolerance)
    finishes = {completion.finish for group in found for completion in group}
    assert finishes == {"stop", "length"}, "rows must end both ways"


def test_a_graph_that_cannot_be_captured_is_named_once_and_done_without(caplog):
    engine, asked = make_engine(), list(zip(PROMPTS, MIXED, strict=True))
    expected = sample(make_sampler(engine, max_batch=5), asked)
    executor = Recorded(4, fails=True)
    with caplog.at_level(logging.WARNING, "aurify"):
        found = sample(make_sampler(engine, executor, max_batch=5), asked)
    assert tokens_of(found) == tokens_of(expected)
    [record] = caplog.records
    assert record.getMessage() == (
        "decoding without CUDA graphs, which is slower: operation not permitted when stream is capturing"
    )
    assert executor.captured == 1 and not executor.graphs


def test_graphs_are_kept_for_batches_and_lengths_of_few_sizes_and_dropped_with_the_cache():
    engine, params = make_engine(max_position_embeddings=2000), SamplingParams(max_tokens=600, seed=0)
    executor = Recorded(8)
    sampler = make_sampler(engine, executor, max_batch=6)
    sampler.stop_tokens = frozenset()
    sample(sampler, [(PROMPTS[0], params), (PROMPTS[1], replace(params, max_tokens=20))], n=2, close=False)
    # 4 and then 2 rows, keys of 256, 512 and (all that the cache has) 640; a step is captured once for each
    assert executor.captured == 4 and executor.forgotten == 1 and not executor.graphs
    sample(sampler, [(PROMPTS[0], params)], n=5)
    assert executor.captured == 7
    assert [decode_batch_bucket(num) for num in (1, 2, 3, 9, 64, 65, 97)] == [1, 2, 4, 16, 64, 96, 128]
    assert [decode_length_bucket(num) for num in (1, 256, 257, 2047, 2049, 8000)] == [256, 256, 512, 2048, 2560, 8192]
    assert len({decode_length_bucket(num) for num in range(1, 32_768)}) == 24


def test_those_who_stand_still_are_taken_along_without_a_trace():
    """A batch of 3 in a bucket of 4, and rows at the very end of the cache while others go on."""
    engine = make_engine(max_position_embeddings=64)
    asked = [([7] * 40, SamplingParams(max_tokens=25, seed=1)), ([9] * 3, SamplingParams(max_tokens=61, seed=2))]
    expected = sample(make_sampler(engine), asked, n=1)
    sampler = make_sampler(engine, Recorded(16))
    sampler.stop_tokens = frozenset()
    assert tokens_of(sample(sampler, asked, n=1)) == tokens_of(expected)


class Watch(TorchDispatchMode):
    """Counts operations, and refuses those whose result the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "item", "masked_select", "is_nonzero", "equal"), name
        if not func.is_view:
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def count_operations(engine: Engine, step=None, options: StepOptions = ALL) -> dict[str, int]:
    sampler = make_sampler(engine, max_batch=4)
    decoder = sampler.decoder
    if step is not None:
        decoder.step = step(decoder.decoder)
    counts = {}

    def watch(*args):
        with Watch() as mode:
            plain(*args[:-1], options)
        counts.update(mode.counts)

    plain, decoder._decode = decoder._decode, watch
    sample(sampler, [(PROMPTS[0], SamplingParams(max_tokens=2, seed=0))])
    return counts


@DTYPES
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("step", [None, PlainStep], ids=["short", "plain"])
def test_a_step_never_waits_for_the_host(step, lora, dtype):
    assert sum(count_operations(make_engine(dtype, lora), step).values()) > 50


@DTYPES
def test_a_decoding_step_has_few_operations(dtype):
    """Kernels, not views: those of a layer, and those around the layers (drawing, positions, mask). In bf16 it rounds
    where the model does, which costs some."""
    none = StepOptions(temperature=False, greedy=False, filters=False)
    counted = []
    for step in (None, PlainStep):
        two, three = (
            sum(count_operations(make_engine(dtype, num_hidden_layers=layers), step, none).values())
            for layers in (2, 3)
        )
        counted.append((three - two, 3 * two - 2 * three))
    (layer, around), (plain_layer, _) = counted
    assert around <= 78 and (layer, plain_layer) <= ((36, 49) if dtype == torch.float32 else (47, 56))


def bytes_held(sampler) -> int:
    cache = sampler.decoder.cache
    held = sum(layer.untyped_storage().nbytes() for layer in (*cache.keys.values(), *cache.values.values()))
    assert held == cache.num_bytes
    return held


def watch_bytes(sampler) -> list[int]:
    """Fills with the bytes of the cache after each change."""
    found, cache = [], sampler.decoder.cache
    resize = cache.resize

    def watched(*shape):
        changed = resize(*shape)
        found.append(bytes_held(sampler))
        return changed

    cache.resize = watched
    return found


@DTYPES
def test_the_cache_keeps_to_its_budget_and_those_who_do_not_fit_wait(dtype):
    engine = make_engine(dtype)
    # two layers, keys and values of two heads of 16, for sequences of up to 64 tokens
    slot = 2 * 2 * 2 * 16 * dtype.itemsize * 64
    asked = [(prompt, SamplingParams(max_tokens=30, seed=k)) for k, prompt in enumerate(PROMPTS)]
    expected = sample(make_sampler(engine), asked, n=4)
    sampler = make_sampler(engine, cache_bytes=5 * slot + slot // 2)
    most, found, begin = 0, watch_bytes(sampler), sampler.decoder.begin

    def begin_watched(admitted):
        nonlocal most
        most = max(most, len(sampler.decoder.active) + len(admitted))
        return begin(admitted)

    sampler.decoder.begin = begin_watched
    assert tokens_of(sample(sampler, asked, n=4, close=False)) == tokens_of(expected)
    assert most == 5 and max(found) == 5 * slot
    assert bytes_held(sampler) == 0, "given back when nothing is to do"
    asyncio.run(sampler.close())


def test_a_sequence_that_no_budget_holds_is_refused_and_no_other():
    engine = make_engine()
    sampler = make_sampler(engine, cache_bytes=3 * 512 * 64)

    async def body():
        params = SamplingParams(max_tokens=50, seed=0)
        asked = [sampler.sample(PROMPTS[0], params, 2), sampler.sample([5] * 200, params, 3)]
        results = await asyncio.gather(*asked, sampler.sample(PROMPTS[1], params), return_exceptions=True)
        await sampler.close()
        return results

    first, refused, last = asyncio.run(body())
    assert len(first) == 2 and len(last) == 1
    assert isinstance(refused, UserError)
    assert str(refused) == (
        "a prompt of 200 tokens and a completion of up to 50 need 0.1 MiB of key-value cache (512 bytes a token); the "
        "sampler has 0.1 MiB: lower max_tokens or sampler.max_context, or give the sampler more cache_bytes"
    )


def test_the_cache_grows_while_sequences_are_in_flight(monkeypatch):
    """A longer request comes, and more of them; what is in the cache moves along, and nothing else of new memory is
    read."""
    empty = torch.empty
    monkeypatch.setattr("aurify.samplers.cache.torch.empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    engine = make_engine()
    early, late = SamplingParams(max_tokens=60, seed=1), SamplingParams(max_tokens=300, seed=2)
    executor = Recorded(4)
    sampler = make_sampler(engine, executor, max_batch=8)
    sampler.stop_tokens = frozenset()
    found = watch_bytes(sampler)

    async def body():
        heard = asyncio.Event()
        first = asyncio.create_task(sampler.sample(PROMPTS[0], early, on_token=lambda token: heard.set()))
        await heard.wait()
        second = await sampler.sample(PROMPTS[1], late, 3)
        return [await first, second]

    together = asyncio.run(body())
    assert found == [512 * 64, 512 * 320 * 4]
    assert executor.forgotten == 2, "graphs hold addresses: they go when the cache moves, and when it is given back"
    expected = [sample(sampler, [(prompt, params)], n, close=False)[0] for prompt, params, n in (
        (PROMPTS[0], early, 1), (PROMPTS[1], late, 3)
    )]  # fmt: skip
    assert tokens_of(together) == tokens_of(expected)
    asyncio.run(sampler.close())


def test_a_cache_that_is_small_for_the_card_stays_with_its_graphs():
    sampler = make_sampler(make_engine(), Recorded(4))
    sampler.decoder.kept_bytes = 512 * 64 * 2
    asked = [(PROMPTS[0], SamplingParams(max_tokens=30, seed=0))]
    first = sample(sampler, asked, n=2, close=False)
    assert bytes_held(sampler) == 512 * 64 * 2
    captured = sampler.decoder.executor.captured
    assert tokens_of(sample(sampler, asked, n=2, close=False)) == tokens_of(first)
    assert sampler.decoder.executor.captured == captured
    sample(sampler, asked, n=3, close=False)
    assert bytes_held(sampler) == 0
    asyncio.run(sampler.close())


def test_two_samplers_of_an_engine_do_not_hold_two_caches():
    """The final evaluation makes a sampler of its own."""
    engine = make_engine()
    samplers = [make_sampler(engine), make_sampler(engine)]
    for sampler in samplers:
        sample(sampler, [(PROMPTS[0], SamplingParams(max_tokens=8))], close=False)
        assert [bytes_held(each) for each in samplers] == [0, 0]
    engine.logprobs([Datum(PROMPTS[0], [0.0, 1.0, 1.0, 1.0])])
    for sampler in samplers:
        asyncio.run(sampler.close())


def test_a_stop_token_stops_a_slot_on_the_device():
    slots = Slots(2, 4, torch.device("cpu"))
    generator = np.random.default_rng(0)
    sequences = [
        Sequence(None, 0, [1, 2, 3], SamplingParams(), 3, frozenset(stops), generator) for stops in ((7, 9), (9,))
    ]
    for slot, sequence in enumerate(sequences):
        slots.put(slot, sequence)
    options = slots.send(0, sequences, 4)
    for token in (5, 7, 6, 8):
        slots.state.record(torch.full((2, 10), -1e4).index_fill(1, torch.tensor([token]), 0.0), options)
    assert [tokens for _, tokens, _ in slots.fetch(0, sequences)] == [[5, 7], [5, 7, 6]]
    assert slots.state.positions.tolist() == [3, 4] and slots.state.tokens.tolist() == [5, 7], "the last is not cached"


def test_moves_fill_the_gaps_with_the_last():
    assert pair_slot_moves([True, False, True, False, False]) == ([3, 4], [0, 2])
    assert pair_slot_moves([False, True, True]) == ([], [])
    assert pair_slot_moves([True, True]) == ([], [])


def test_shapes_are_found_by_a_single_token():
    engine = make_engine(head_dim=24, num_key_value_heads=1, num_hidden_layers=3)
    with torch.no_grad():
        _, cache = prepare_layouts(engine)
    assert cache.shapes == dict.fromkeys(range(3), (1, 24, 24)) and cache.token_bytes == 3 * 48 * 4

"""An exception in any step of the sampler's thread reaches the callers whom it concerns, within a second, and the
sampler goes on with the others. Shows 5 of issue 13."""

from __future__ import annotations

import asyncio
import gc

import pytest
import torch
from models import random_model
from models import run_sampler as run

from aurify.engine.engine import Engine
from aurify.errors import UserError
from aurify.samplers.continuous import Continuous
from aurify.samplers.executors import CoresExecutor, GraphExecutor
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.recurrent import SameLength
from aurify.samplers.request import Sequence
from aurify.samplers.sampler import request_order
from aurify.types import SamplingParams

A, B, C = [5, 6, 7, 8], [5, 6, 9, 9], [100, 101, 102, 103]
PARAMS = SamplingParams(max_tokens=12, seed=3)
SECOND = 1.0
MAMBA = {"num_attention_heads": None, "num_key_value_heads": None, "state_size": 8, "residual_in_fp32": False}


class Planted(RuntimeError):
    pass


def make_sampler(kind: str = "cores", **options) -> InProcessSampler:
    """cores: a step at a time; blocks: four steps before the host looks; recurrent: the model's own cache."""
    engine = Engine(random_model("Mamba", **MAMBA) if kind == "recurrent" else random_model())
    sampler = InProcessSampler(engine, **{"max_batch": 8} | options)
    sampler.stop_tokens = frozenset()
    made = sampler.prepare()
    assert isinstance(made, SameLength if kind == "recurrent" else Continuous)
    if kind == "blocks":
        sampler.decoder = Continuous(
            engine, made.decoder, made.cache, made.step, sampler.max_batch, None, GraphExecutor(None, steps=4)
        )
    return sampler


async def ask(sampler, prompt=A, params=PARAMS, n=1):
    """A completion, or the error; in either case soon."""
    try:
        return (await asyncio.wait_for(sampler.sample(prompt, params, n), 20 * SECOND))[0].tokens
    except (Planted, UserError, ValueError) as error:
        return error


def expected(prompt, kind="cores", params=PARAMS):
    sampler = make_sampler(kind)
    return run(sampler, lambda: ask(sampler, prompt, params))


def fails_at(function, when, error="planted"):
    """`function`, which raises where `when(call number, arguments)` says so."""
    calls = iter(range(10**6))

    def planted(*arguments, **options):
        if when(next(calls), arguments):
            raise Planted(error)
        return function(*arguments, **options)

    return planted


def plant(monkeypatch, sampler, step, when):
    decoder = sampler.decoder
    if step == "draw":
        state = type(decoder.slots.state)
        monkeypatch.setattr(state, "record", fails_at(state.record, when))
        return
    names = {"prefill": "_prefill", "decode": "_decode", "retire": "remove", "admit": "admit"}
    name = names[step] if hasattr(decoder, names[step]) else "_run"
    monkeypatch.setattr(decoder, name, fails_at(getattr(decoder, name), when))


@pytest.mark.parametrize("kind", ["cores", "blocks", "recurrent"])
@pytest.mark.parametrize("step", ["admit", "prefill", "decode", "draw", "retire"])
def test_an_exception_in_every_step_reaches_the_caller_within_a_second_and_the_sampler_goes_on(step, kind, monkeypatch):
    sampler = make_sampler(kind)
    failing = [True]
    plant(monkeypatch, sampler, step, lambda call, _: failing[0])

    async def body():
        first = await asyncio.wait_for(ask(sampler, A), SECOND)
        failing[0] = False
        return first, await ask(sampler, A), await ask(sampler, B)

    first, again, other = run(sampler, body)
    if step == "retire":  # it had all its tokens, and got them
        assert first == expected(A, kind)
    else:
        assert isinstance(first, Planted)
    assert (again, other) == (expected(A, kind), expected(B, kind)), "as if nothing had happened"


@pytest.mark.parametrize("at", [1, 2, 3, 6])
def test_an_exception_in_the_middle_of_a_block_fails_those_in_flight_and_those_who_wait_are_served(at, monkeypatch):
    """Call `at` of the step's code is one of a block of four."""
    sampler = make_sampler("blocks", max_batch=2)
    plant(monkeypatch, sampler, "decode", lambda call, _: call == at)

    async def body():
        return await asyncio.gather(*(ask(sampler, prompt) for prompt in (A, B, C)))

    first, second, third = run(sampler, body)
    assert isinstance(first, Planted) and isinstance(second, Planted)
    assert third == expected(C)
    assert sampler.decoder is None and not sampler.doubtful


@pytest.mark.parametrize("kind", ["cores", "blocks", "recurrent"])
def test_one_bad_request_fails_alone_whatever_is_computed_with_it(kind, monkeypatch):
    """Its prompt cannot be computed. Those whose prompts were to be computed with it, those in flight and those who
    wait get what they would have got without it."""
    sampler = make_sampler(kind)
    decoder = sampler.decoder

    def is_bad(call, arguments):
        if kind == "recurrent":
            return arguments[0].shape[1] > 1 and bool((arguments[0] == 101).any())
        return any(101 in sequence.prompt for sequence in arguments[0])

    plant(monkeypatch, sampler, "prefill", is_bad)
    long = SamplingParams(max_tokens=300, seed=1)

    async def body():
        flying = asyncio.ensure_future(ask(sampler, [9, 9, 9], long))
        while not decoder.active and not flying.done():
            await asyncio.sleep(0.001)
        together = await asyncio.gather(*(ask(sampler, prompt) for prompt in (A, C, B)))
        return await flying, *together

    flying, first, bad, last = run(sampler, body)
    assert isinstance(bad, Planted)
    assert (first, last) == (expected(A, kind), expected(B, kind))
    assert flying == expected([9, 9, 9], kind, long)


def test_a_request_of_many_completions_ends_once_though_it_is_partly_in_flight(monkeypatch):
    """Three slots for five completions: the prefill of the rest fails, and the first three are let go of."""
    sampler = make_sampler(max_batch=3)
    plant(monkeypatch, sampler, "prefill", lambda call, arguments: call > 0 and arguments[0][0].prompt == A)

    async def body():
        return await asyncio.gather(ask(sampler, A, n=5), ask(sampler, B))

    many, other = run(sampler, body)
    assert isinstance(many, Planted) and other == expected(B)


def test_a_stop_string_that_cannot_be_looked_for_concerns_its_own_request(monkeypatch):
    sampler = make_sampler()
    stopping = SamplingParams(max_tokens=12, seed=3, stop=("zz",))
    tokenizer = sampler.engine.tokenizer
    monkeypatch.setattr(tokenizer, "decode", fails_at(tokenizer.decode, lambda *_: True))

    async def body():
        return await asyncio.gather(ask(sampler, A, stopping), ask(sampler, B))

    stopped, other = run(sampler, body)
    assert isinstance(stopped, Planted) and other == expected(B)


def test_a_cache_that_cannot_be_made_larger_fails_those_in_flight_too_and_nobody_waits(monkeypatch):
    """Out of memory while the cache is moved: half of it may be there."""
    sampler = make_sampler()
    plant_in = sampler.decoder.cache
    monkeypatch.setattr(plant_in, "resize", fails_at(plant_in.resize, lambda call, _: call == 1))

    async def body():
        flying = asyncio.ensure_future(ask(sampler, [9, 9, 9], SamplingParams(max_tokens=60, seed=1)))
        while not sampler.decoder.active and not flying.done():
            await asyncio.sleep(0.001)
        results = await asyncio.gather(ask(sampler, A, SamplingParams(max_tokens=400)), ask(sampler, B))
        return await flying, *results, await ask(sampler, B)

    *failed, again = run(sampler, body)
    assert all(isinstance(result, Planted) for result in failed)
    assert again == expected(B)


def test_a_decoder_that_cannot_even_be_let_go_of_is_made_anew(monkeypatch):
    sampler = make_sampler()
    plant(monkeypatch, sampler, "decode", lambda call, _: True)
    broken = sampler.decoder
    monkeypatch.setattr(broken, "release", fails_at(broken.release, lambda *_: True))

    async def body():
        first = await asyncio.wait_for(ask(sampler, A), SECOND)
        return first, await ask(sampler, A), sampler.decoder

    first, again, decoder = run(sampler, body)
    assert isinstance(first, Planted) and again == expected(A)
    assert decoder is not broken


def test_close_ends_every_request_those_in_flight_those_who_wait_and_those_who_just_came():
    sampler = make_sampler(max_batch=1)

    async def body():
        long = SamplingParams(max_tokens=900, seed=0)
        flying = asyncio.ensure_future(ask(sampler, A, long))
        waiting = asyncio.ensure_future(ask(sampler, B, long))
        while not sampler.decoder.active:
            await asyncio.sleep(0.001)
        late = asyncio.ensure_future(ask(sampler, C, long))
        await asyncio.sleep(0)  # it has asked, and nobody has handed it over yet
        await sampler.close()
        return await asyncio.wait_for(asyncio.gather(flying, waiting, late, ask(sampler, A)), SECOND)

    for error in asyncio.run(body()):
        assert isinstance(error, ValueError) and "closed" in str(error)


def test_close_before_anything_began_ends_the_requests_too():
    sampler = make_sampler()

    async def body():
        asked = asyncio.ensure_future(ask(sampler, A))
        await asyncio.sleep(0)
        await sampler.close()
        return await asyncio.wait_for(asked, SECOND)

    assert "closed" in str(asyncio.run(body()))


@pytest.mark.parametrize("token", [300, -1])
def test_a_prompt_token_beyond_the_embedding_is_refused_at_once_and_the_sampler_goes_on(token):
    """It made `aurify sample` and GRPO wait for ever."""
    sampler = make_sampler()

    async def body():
        refused, other = await asyncio.gather(ask(sampler, [5, token]), ask(sampler, A))
        return refused, other, await ask(sampler, [5, 299])

    refused, other, largest = run(sampler, body)
    assert isinstance(refused, UserError)
    assert f"the token {token}, outside 0..299" in str(refused)
    assert other == expected(A) and len(largest) == 12


def test_a_caller_whose_event_loop_is_gone_harms_nobody():
    sampler = make_sampler()

    async def ask_and_leave():
        asked = asyncio.ensure_future(sampler.sample(A, SamplingParams(max_tokens=100, seed=0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return asked

    loop = asyncio.new_event_loop()
    loop.run_until_complete(ask_and_leave())
    loop.close()
    assert run(sampler, lambda: ask(sampler, B)) == expected(B)
    gc.collect()


def test_those_who_wait_are_admitted_in_their_order_and_not_in_that_of_their_arrival(monkeypatch):
    """Bits of log-probs depend on the batch, so that the order of arrival must not decide who is in it."""
    sampler = make_sampler(max_batch=2)
    admitted: list[int] = []
    begin = sampler.decoder.begin

    def watched(sequences: list[Sequence]):
        admitted.extend(sequence.prompt[0] for sequence in sequences)
        return begin(sequences)

    monkeypatch.setattr(sampler.decoder, "begin", watched)

    async def ordered(number):
        request_order.set((0, number))
        return await ask(sampler, [number, 7])

    async def body():
        held = sampler.engine.lock
        with held:  # all of them have arrived when the sampler comes to look
            first = [asyncio.ensure_future(ordered(number)) for number in (5, 2)]
            await asyncio.sleep(0.01)
            later = [asyncio.ensure_future(ordered(number)) for number in (4, 1, 3)]
            await asyncio.sleep(0.01)
        return await asyncio.gather(*first, *later)

    run(sampler, body)
    assert admitted == [1, 2, 3, 4, 5]


def test_rollouts_of_one_turn_are_equal_to_the_bit_and_of_several_turns_in_their_tokens():
    """What README promises: nothing but the last bits of log-probs depends on who came when."""
    params = SamplingParams(max_tokens=9, seed=2)

    def sampled(pauses):
        sampler = make_sampler(max_batch=3)

        async def two_turns(number):
            request_order.set((number,))
            [first] = await sampler.sample([number + 5, 6], params)
            await asyncio.sleep(pauses[number])
            [second] = await sampler.sample([number + 5, 6, *first.tokens, 9], params)
            return first, second

        return run(sampler, lambda: asyncio.gather(*map(two_turns, range(6))))

    one, other = sampled([0.0] * 6), sampled([0.02, 0.0, 0.01, 0.005, 0.0, 0.015])
    for mine, theirs in zip(one, other, strict=True):
        assert [c.tokens for c in mine] == [c.tokens for c in theirs]
        for k in range(2):
            assert mine[k].logprobs == pytest.approx(theirs[k].logprobs, abs=1e-5)

    def single():
        sampler = make_sampler(max_batch=3)
        asked = lambda: asyncio.gather(*(sampler.sample([k, 6], params) for k in range(7)))  # noqa: E731
        return [completion.logprobs for [completion] in run(sampler, asked)]

    assert single() == single()


def test_the_executor_of_cores_is_what_these_tests_meant():
    assert isinstance(make_sampler().decoder.executor, CoresExecutor)
    assert torch.get_num_threads() == 1

"""Conversations keep their keys and values between turns: a turn computes what is new, draws what it would have drawn
without, and leaves nothing behind. Shows 8 of issue 16."""

from __future__ import annotations

import asyncio
import time
import weakref
from dataclasses import replace

import pytest
import torch
from models import random_engine, random_model
from models import run_sampler as run
from tolerances import mean_over_tokens, per_token

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.environments.multi_turn import MultiTurnEnvironment
from aurify.environments.rollout import Limits, rollout
from aurify.environments.single_turn import SingleTurn
from aurify.models.model import tiny_model
from aurify.renderer import Renderer
from aurify.samplers import sessions
from aurify.samplers.cache import Extension, Prefill
from aurify.samplers.continuous import Continuous
from aurify.samplers.executors import CoresExecutor, GraphExecutor
from aurify.samplers.inprocess import InProcessSampler
from aurify.samplers.sampler import Session
from aurify.types import Datum, SamplingParams, Task

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
ARCHITECTURES = [
    ("Llama", {}),
    ("Mistral", {"sliding_window": 8}),
    ("Gemma3Text", {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
]
PARAMS = SamplingParams(max_tokens=12, seed=3)
TOKEN_BYTES = {"float32": 512, "bfloat16": 256}  # two layers, keys and values of two heads of 16


def make_engine(dtype="float32", architecture="Llama", lora=None, **options) -> Engine:
    return random_engine(architecture, lora, getattr(torch, dtype), **{"max_position_embeddings": 2048} | options)


def make_sampler(engine=None, executor=None, **options) -> InProcessSampler:
    sampler = InProcessSampler(engine or make_engine(), **{"max_batch": 8} | options)
    sampler.stop_tokens = frozenset()
    made = sampler.prepare()
    assert isinstance(made, Continuous)
    if executor is not None:
        sampler.decoder = Continuous(
            sampler.engine, made.decoder, made.cache, made.step, sampler.max_batch, sampler.cache_bytes, executor
        )
    return sampler


def count_prefilled(engine) -> list[int]:
    """Fills with the tokens of prompts that each row computes."""
    found: list[int] = []

    def count(module, args, kwargs):
        if isinstance(kwargs.get("layout"), (Prefill, Extension)):
            found.append(kwargs["layout"].tokens.numel())

    engine.body.decoder.register_forward_pre_hook(count, with_kwargs=True)
    return found


def answer(number: int, turn: int) -> list[int]:
    """What an environment says."""
    return [(31 * number + 7 * turn + k) % 290 + 5 for k in range(3 + (number + turn) % 4)]


async def converse(sampler, number=0, turns=4, session=None, params=PARAMS, pause=0.0, first=(5, 6, 7, 8, 9)):
    """The completions of a conversation, and its tokens."""
    tokens, found = [*first, number + 50], []
    for turn in range(turns):
        params = replace(params, seed=100 * number + turn)
        if session is None:
            [completion] = await sampler.sample(tokens, params)
        else:
            with session:
                [completion] = await sampler.sample(tokens, params)
        found.append(completion)
        tokens = [*tokens, *completion.tokens, *answer(number, turn)]
        await asyncio.sleep(pause)
    if session is not None:
        session.close()
    return found, tokens


def same_tokens(one, other) -> bool:
    return [c.tokens for c in one] == [c.tokens for c in other]


def held_bytes(sampler) -> int:
    return sampler.decoder.sessions.num_bytes


@DTYPES
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
@pytest.mark.parametrize("executor", [None, 4], ids=["cores", "blocks"])
def test_turns_with_a_session_draw_what_they_draw_without_and_the_trainer_agrees(
    architecture, options, lora, dtype, executor
):
    """Each prompt is asked again without a session. In bf16 a random number may fall between two roundings of a
    probability: then the tokens part, and are compared up to there."""
    engine = make_engine(dtype, architecture, lora, **options)

    def played():
        sampler = make_sampler(engine, executor and GraphExecutor(None, executor), max_batch=3)
        return run(sampler, lambda: asyncio.gather(*(converse(sampler, k, session=Session()) for k in range(5))))

    talks, asked, gaps, parted = played(), [], [], 0
    for number, (completions, tokens) in enumerate(talks):
        length, weights, sampled = 6, [0.0] * 6, [0.0] * 6
        for turn, completion in enumerate(completions):
            asked.append((tokens[:length], replace(PARAMS, seed=100 * number + turn), completion))
            said = [0.0] * len(answer(number, turn))
            weights += [1.0] * len(completion.tokens) + said
            sampled += completion.logprobs + said
            length = len(sampled)
        [trained] = engine.logprobs([Datum(tokens, weights)])
        gaps += [abs(x - y) for x, y, weight in zip(sampled, trained, weights, strict=True) if weight]
    assert max(gaps) < per_token(dtype) and sum(gaps) / len(gaps) < mean_over_tokens(dtype)
    plain = make_sampler(engine, max_batch=3)
    alone = run(plain, lambda: asyncio.gather(*(plain.sample(prompt, params) for prompt, params, _ in asked)))
    for [expected], (*_, completion) in zip(alone, asked, strict=True):
        pairs = zip(completion.tokens, expected.tokens, strict=True)
        same = next((k for k, (one, other) in enumerate(pairs) if one != other), 12)
        parted += same < 12
        assert completion.logprobs[:same] == pytest.approx(expected.logprobs[:same], abs=per_token(dtype))
    assert parted <= (0 if dtype == "float32" else 4)  # of 20 turns; measured: at most 3
    for (one, _), (other, _) in zip(talks, played(), strict=True):
        assert same_tokens(one, other)


def test_a_turn_computes_what_is_new_and_a_group_its_prompt_once():
    engine = make_engine()
    rows = count_prefilled(engine)
    sampler = make_sampler(engine)
    prompt = tuple(range(5, 105))

    async def group(**options):
        return await asyncio.gather(*(converse(sampler, 0, turns=12, first=prompt, **options) for _ in range(4)))

    async def body():
        await group()
        without = sum(rows)
        rows.clear()
        return without, await asyncio.gather(
            *(converse(sampler, 0, turns=12, first=prompt, session=Session()) for _ in range(4))
        )

    without, talks = run(sampler, body)
    assert rows[0] == 101, "the prompt, for all four"
    later = sum(len(answer(0, turn)) + 1 for turn in range(11))  # and the last token of the turn before
    assert sum(rows) == 101 + 4 * later
    assert sum(rows) < sum(len(tokens) for _, tokens in talks) / 2 and without > 1.9 * sum(rows)


def test_a_prompt_that_goes_another_way_keeps_the_common_prefix_only():
    """As templates do that drop old thoughts. A prompt that is the old one, or shorter, too."""
    engine = make_engine()
    rows, sampler, session = count_prefilled(engine), make_sampler(engine), Session()
    first = list(range(20, 60))
    later = [[*first[:30], 9, 9, 9, 9], first, first[:10], [*first, 7, 7], [200, *first]]

    async def body():
        with session:
            await sampler.sample(first, PARAMS)
        rows.clear()
        found = []
        for prompt in later:
            with session:
                found += await sampler.sample(prompt, PARAMS)
        computed = list(rows)
        session.close()
        return computed, found, [(await sampler.sample(prompt, PARAMS))[0] for prompt in later]

    computed, found, expected = run(sampler, body)
    assert computed == [4, 10, 1, 32, 41]
    assert same_tokens(found, expected)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("in_flight", [True, False], ids=["in the middle of a turn", "between turns"])
def test_new_weights_end_what_was_kept_and_the_conversation_goes_on(announced, in_flight):
    from aurify.algorithms.sft import SFT

    engine = make_engine()
    rows, sampler, session = count_prefilled(engine), make_sampler(engine), Session()

    async def body():
        async def train(*_):
            engine.forward_backward([Datum([*range(5, 40)], [0.0] + [1.0] * 34)], SFT())
            engine.optim_step(1e-2)
            if announced:
                await sampler.load_weights(engine.weights(), engine.version)

        heard, params = asyncio.Event(), replace(PARAMS, max_tokens=400 if in_flight else 12)
        with session:
            turn = asyncio.ensure_future(sampler.sample([5, 6, 7], params, on_token=lambda _: heard.set()))
        await heard.wait()
        if not in_flight:
            await turn
        await train()
        [first] = await turn
        if in_flight and announced:
            assert set(first.versions) == {0, 1}, "it must have been in the middle"
        rows.clear()
        prompt = [5, 6, 7, *first.tokens, 9, 9]
        with session:
            [second] = await sampler.sample(prompt, PARAMS)
        computed = list(rows)
        session.close()
        [expected] = await sampler.sample(prompt, PARAMS)
        return computed, prompt, second, expected

    computed, prompt, second, expected = run(sampler, body)
    assert computed == [len(prompt)], "all of it, with the new weights"
    assert second.tokens == expected.tokens and second.logprobs == expected.logprobs
    assert set(second.versions) == {int(announced)}


def test_a_trajectory_that_waits_long_gives_its_memory_back_and_samples_the_same_later(monkeypatch):
    monkeypatch.setattr(sessions, "PATIENCE", 0.2)
    engine = make_engine()
    rows, sampler = count_prefilled(engine), make_sampler(engine)

    async def body():
        patient = await converse(sampler, turns=3)
        rows.clear()
        session = Session()
        with session:
            [first] = await sampler.sample([5, 6, 7, 8, 9, 50], replace(PARAMS, seed=0))
        held = held_bytes(sampler)
        for _ in range(300):  # nobody asks for anything
            await asyncio.sleep(0.01)
            if not session.kept:
                break
        assert held == 512 * 17 and not session.kept and held_bytes(sampler) == 0
        rows.clear()
        late = await converse(sampler, turns=3, session=session, pause=0.5)
        return patient, late, first

    (plain, _), (late, _), first = run(sampler, body)
    assert same_tokens(plain, late) and first.tokens == late[0].tokens
    assert rows == [6, 6 + 12 + 3, 21 + 12 + 4], "each turn computed its whole prompt"


@DTYPES
def test_two_hundred_conversations_under_a_small_budget_end_and_never_exceed_it(dtype):
    engine = make_engine(dtype)
    budget = TOKEN_BYTES[dtype] * 128 * 12  # room for some in flight and some that wait
    sampler = make_sampler(engine, cache_bytes=budget, max_batch=16)
    decoder, most, kept = sampler.decoder, 0, 0
    remove, resize = decoder.remove, decoder.cache.resize

    def watch():
        nonlocal most, kept
        most, kept = max(most, decoder.cache.num_bytes + held_bytes(sampler)), max(kept, held_bytes(sampler))

    def watched_remove():
        remove()
        watch()

    def watched_resize(*shape):
        changed = resize(*shape)
        watch()
        return changed

    decoder.remove, decoder.cache.resize = watched_remove, watched_resize
    params = SamplingParams(max_tokens=8)
    talks = [Session() for _ in range(200)]
    found = run(sampler, lambda: asyncio.gather(*(converse(sampler, k, 4, s, params) for k, s in enumerate(talks))))
    assert [len(completions) for completions, _ in found] == [4] * 200
    assert 0 < kept <= budget // 4 and most <= budget
    assert not any(session.kept for session in talks) and not decoder.sessions.waiting
    plain = make_sampler(engine)
    expected = run(plain, lambda: asyncio.gather(*(converse(plain, k, 4, None, params) for k in (0, 77, 199))))
    for k, (completions, _) in zip((0, 77, 199), expected, strict=True):
        assert same_tokens(found[k][0], completions)


def test_a_conversation_that_needs_the_whole_budget_gets_it_from_those_that_wait():
    engine = make_engine()
    sampler, small = make_sampler(engine, cache_bytes=512 * 256), Session()

    async def body():
        with small:
            await sampler.sample([5] * 20, PARAMS)
        assert held_bytes(sampler) == 512 * 31
        [large] = await sampler.sample([6] * 200, replace(PARAMS, max_tokens=50))
        return large, held_bytes(sampler)

    large, held = run(sampler, body)
    assert len(large.tokens) == 50 and held == 0


@pytest.mark.parametrize("when", ["waits", "prefills", "decodes"])
@pytest.mark.parametrize("executor", [None, 4], ids=["cores", "blocks"])
def test_a_cancelled_turn_frees_its_slot_and_its_memory(when, executor):
    """verl 1696: an agent that is given up must not hold what others wait for."""
    sampler = make_sampler(executor=executor and GraphExecutor(None, executor), max_batch=1)
    decoder, session = sampler.decoder, Session()
    long = SamplingParams(max_tokens=1900, seed=0)

    async def turn(session, prompt, params):
        with session:
            return await sampler.sample(prompt, params)

    async def body():
        [first] = await turn(session, [5, 6, 7], PARAMS)
        prompt = [5, 6, 7, *first.tokens, 9]
        began, prefill = asyncio.Event(), decoder._prefill
        loop = asyncio.get_running_loop()
        if when == "waits":
            other = asyncio.ensure_future(sampler.sample([9, 9], long))
            while not decoder.active:
                await asyncio.sleep(0.001)

        def slow(admitted, slot):
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.1)
            return prefill(admitted, slot)

        if when == "prefills":
            decoder._prefill = slow
        given_up = asyncio.ensure_future(turn(session, prompt, long))
        if when == "prefills":
            await began.wait()
        elif when == "decodes":
            while not decoder.active:
                await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0.02)
            assert len(sampler.waiting) == 1
        given_up.cancel()
        if when == "waits":
            other.cancel()
        session.close()
        decoder._prefill = prefill
        [last] = await asyncio.wait_for(sampler.sample([100, 101], PARAMS), 5)
        return last

    last = run(sampler, body)
    plain = make_sampler()
    [expected] = run(plain, lambda: plain.sample([100, 101], PARAMS))
    assert last.tokens == expected.tokens
    assert not session.kept and not decoder.sessions.waiting and not decoder.active


def test_memory_is_given_back_when_those_who_waited_for_a_slot_gave_up():
    sampler = make_sampler(max_batch=1)

    async def body():
        first = asyncio.ensure_future(sampler.sample([5, 6], replace(PARAMS, max_tokens=40)))
        others = [asyncio.ensure_future(sampler.sample([7, k], PARAMS)) for k in range(3)]
        retire = sampler.decoder.remove

        def cancel_then_retire():
            """They give up in the moment in which the first one ends."""
            retire()
            if not sampler.decoder.active:
                for other in others:
                    other.get_loop().call_soon_threadsafe(other.cancel)
                for sequence in list(sampler.waiting):
                    while not sequence.request.future.cancelled():
                        pass

        sampler.decoder.remove = cancel_then_retire
        await first
        for _ in range(200):
            if not sampler.waiting and sampler.decoder.cache.num_bytes == 0:
                return True
            await asyncio.sleep(0.01)
        return False

    assert run(sampler, body)


def test_a_prefill_that_fails_is_tried_again_from_the_start_of_the_prompt(monkeypatch):
    sampler, session = make_sampler(), Session()
    calls = iter(range(100))
    from aurify.samplers import continuous

    plain = continuous.prefill_new

    def planted(*arguments):
        if next(calls) == 0:
            raise RuntimeError("planted")
        return plain(*arguments)

    monkeypatch.setattr(continuous, "prefill_new", planted)

    async def body():
        with session:
            [first] = await sampler.sample([5, 6, 7], PARAMS)
        prompt = [5, 6, 7, *first.tokens, 9]

        async def turn():
            with session:
                return await sampler.sample(prompt, PARAMS)

        (second,), _ = await asyncio.gather(turn(), sampler.sample([8, 8], PARAMS))
        [expected] = await sampler.sample(prompt, PARAMS)
        return second.tokens, expected.tokens

    second, expected = run(sampler, body)
    assert second == expected and next(calls) == 1


def test_nothing_leaks_when_a_sampler_is_closed():
    sampler, talks = make_sampler(), [Session() for _ in range(6)]

    async def body():
        async def turn(k, session):
            with session:
                return await sampler.sample([5, 6, k + 7], PARAMS)

        await asyncio.gather(*(turn(k, session) for k, session in enumerate(talks)))
        assert held_bytes(sampler) == 6 * 512 * 14
        return [weakref.ref(kept.copied) for session in talks for kept in session.kept.values()]

    copies = run(sampler, body)
    assert len(copies) == 6 and not any(copy() is not None for copy in copies)
    assert not any(session.kept for session in talks)


def test_a_session_that_is_closed_frees_its_memory_at_once():
    sampler, session = make_sampler(), Session()

    async def body():
        with session:
            await sampler.sample([5, 6, 7], PARAMS)
        [kept] = session.kept.values()
        copy = weakref.ref(kept.copied)
        del kept
        assert copy() is not None
        session.close()
        return copy() is None

    assert run(sampler, body)


@pytest.mark.parametrize("architecture", ["Gemma2", "Mamba"])
def test_models_with_a_cache_of_their_own_compute_each_prompt_anew(architecture):
    options = {"num_attention_heads": None, "num_key_value_heads": None, "state_size": 8, "residual_in_fp32": False}
    model = random_model(architecture, **(options if architecture == "Mamba" else {"head_dim": 16}))
    engine = Engine(model)

    def played(session):
        sampler = InProcessSampler(engine, max_batch=4)
        sampler.stop_tokens = frozenset()
        found = run(sampler, lambda: converse(sampler, session=session))
        return found

    session = Session()
    assert same_tokens(played(session)[0], played(None)[0]) and not session.kept


def test_a_closed_session_keeps_nothing_more_and_other_requests_never_read_it(monkeypatch):
    engine = make_engine()
    rows, sampler, session = count_prefilled(engine), make_sampler(engine), Session()

    async def body():
        with session:
            await sampler.sample(list(range(20, 60)), PARAMS)
        rows.clear()
        await sampler.sample(list(range(20, 60)), PARAMS)
        with session:
            await sampler.sample(list(range(20, 60)), PARAMS, 2)  # several completions are no turn
        computed = list(rows)
        session.close()
        monkeypatch.setattr(sampler.decoder.cache, "copy_out", lambda *_: pytest.fail("copied for nobody"))
        with session:
            await sampler.sample([9, 9], PARAMS)
        return computed

    assert run(sampler, body) == [40, 40] and not session.kept


def test_a_turn_that_was_given_up_is_known_to_the_next_one():
    """As after Ctrl-C in a chat."""
    engine = make_engine()
    rows, sampler, session = count_prefilled(engine), make_sampler(engine), Session()

    async def body():
        heard = asyncio.Event()
        with session:
            params = replace(PARAMS, max_tokens=1900)
            given_up = asyncio.ensure_future(
                sampler.sample(list(range(20, 60)), params, on_token=lambda _: heard.set())
            )
        await heard.wait()
        given_up.cancel()
        while sampler.decoder.active:
            await asyncio.sleep(0.001)
        rows.clear()
        prompt = [*range(20, 60), 9, 9]
        with session:
            [found] = await sampler.sample(prompt, PARAMS)
        computed = list(rows)
        session.close()
        [expected] = await sampler.sample(prompt, PARAMS)
        return computed, found.tokens, expected.tokens

    computed, found, expected = run(sampler, body)
    assert computed == [2] and found == expected


def test_parts_on_cores_of_their_own_compute_the_same():
    engine = make_engine()

    def played(parts):
        executor = CoresExecutor(64)
        executor.parts = parts
        sampler = make_sampler(engine, executor, max_batch=64)
        params = SamplingParams(max_tokens=6)
        return run(sampler, lambda: asyncio.gather(*(converse(sampler, k, 3, Session(), params) for k in range(40))))

    for (one, _), (other, _) in zip(played(1), played(2), strict=True):
        assert same_tokens(one, other)


class Talk(MultiTurnEnvironment):
    """Says something until the policy has had 12 turns. It hears a vowel as the end of a turn."""

    stop = tuple("aeiouy")
    hangs = False
    heard = 0

    async def step(self, message):
        self.heard += 1
        if self.hangs and self.heard == 3:
            await asyncio.sleep(100)
        return "and then? " * (3 + self.heard % 3)


QUESTION = Task("talk", [{"role": "user", "content": "Tell me a story, please."}])


def play(sampler, environment, number=0):
    params = SamplingParams(max_tokens=2000, seed=number)
    return rollout(QUESTION, environment, sampler, Renderer(sampler.engine.tokenizer), params, limits=Limits(turns=12))


@DTYPES
def test_twelve_turns_of_an_environment_compute_hardly_more_than_their_tokens(dtype):
    model = tiny_model(max_position_embeddings=8192)
    model.module.to(getattr(torch, dtype))
    engine = Engine(model)
    rows, sampler = count_prefilled(engine), InProcessSampler(engine, max_batch=4)

    async def body():
        played = await asyncio.gather(*(play(sampler, Talk(QUESTION), k) for k in range(6)))
        assert not sampler.decoder.sessions.num_bytes, "each was closed at its end"
        return played

    played = run(sampler, body)
    assert [len(trajectory.turns) for trajectory in played] == [12] * 6
    total = sum(len(segment.tokens) for trajectory in played for segment in trajectory.segments)
    assert total > 6 * 12 * 40 and sum(rows) <= 1.2 * total


def test_an_environment_that_hangs_is_given_up_with_all_that_was_kept_of_it():
    engine = Engine(tiny_model(max_position_embeddings=8192))
    sampler = InProcessSampler(engine)

    async def body():
        stuck = Talk(QUESTION)
        stuck.hangs = True
        trajectory = asyncio.ensure_future(play(sampler, stuck))
        while stuck.heard < 3:
            await asyncio.sleep(0.01)
        assert sampler.decoder.sessions.num_bytes > 0
        trajectory.cancel()
        await asyncio.gather(trajectory, return_exceptions=True)
        return sampler.decoder.sessions.num_bytes

    assert run(sampler, body) == 0


def test_a_question_with_one_answer_keeps_nothing():
    sampler = InProcessSampler(Engine(tiny_model()))

    async def body():
        await play(sampler, SingleTurn(QUESTION))
        return sampler.decoder.session_bytes, sampler.decoder.sessions.waiting

    assert run(sampler, body) == (0, {})

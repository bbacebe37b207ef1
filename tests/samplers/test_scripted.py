"""The sampler that says what it is told to."""

from __future__ import annotations

import asyncio

import tokenizers_in_code as made

from aurify.samplers.scripted import ScriptedSampler
from aurify.types import SamplingParams

TOKENIZER = made.byte_level()


def sample(sampler, prompt=(1, 2), n=1, **options):
    return asyncio.run(sampler.sample(list(prompt), SamplingParams(**options), n))


def test_replies_in_turn_with_their_end():
    sampler = ScriptedSampler(["he", [9, 9, TOKENIZER.eos_token_id]], TOKENIZER)
    first, second, third = sample(sampler, n=3)
    assert TOKENIZER.decode(first.tokens) == "he<|im_end|>"
    assert second.tokens[:2] == [9, 9]
    assert third == first
    assert {c.finish for c in (first, second)} == {"stop"}
    assert first.logprobs == [-1.0] * len(first.tokens)
    assert sampler.prompts == [[1, 2]] * 3


def test_replies_that_depend_on_the_prompt():
    sampler = ScriptedSampler(lambda prompt: str(len(prompt)), TOKENIZER)
    assert TOKENIZER.decode(sample(sampler, [5] * 12)[0].tokens[:-1]) == "12"


def test_limits_and_stop_tokens():
    [cut] = sample(ScriptedSampler(["all all"], TOKENIZER), max_tokens=3)
    assert (len(cut.tokens), cut.finish) == (3, "length")
    [stopped] = sample(ScriptedSampler([[7, 8]], TOKENIZER), stop_tokens=(8,))
    assert stopped.finish == "stop"


def test_versions_follow_the_weights():
    sampler = ScriptedSampler(["he"], TOKENIZER)
    asyncio.run(sampler.load_weights(iter(()), 4))
    assert set(sample(sampler)[0].versions) == {4}

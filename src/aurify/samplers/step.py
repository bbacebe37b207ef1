"""Chooses the code of a decoding step: a short step of our own, the model's code, or a batch with the model's own
cache.

A choice is measured before it is used: the distributions of a few tokens, decoded one by one, are compared with those
of the trainer's forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aurify.engine.attention import IMPLEMENTATION, Unsupported
from aurify.engine.engine import Engine
from aurify.engine.packing import pack_row
from aurify.engine.weights import share_weights
from aurify.samplers.cache import ROUND, Decoding, Extension, Prefill, Probe, SlotCache
from aurify.samplers.llama import ALIKE, LlamaStep

log = logging.getLogger("aurify")

Step = Callable[[Tensor, Decoding], Tensor]  # last tokens [n] -> hidden states [n, hidden]; fills the cache
SEQUENCES, LENGTH = 2, 12  # that are computed to compare
COMPARED = 4  # last tokens of each that are compared
SPREAD = 3.0  # the short step may be so many times as far from the trainer as the model's own code


class PlainStep:
    """The model's own code."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def __call__(self, tokens: Tensor, step: Decoding) -> Tensor:
        result = self.decoder(
            input_ids=tokens[:, None], position_ids=step.positions[:, None], use_cache=False, layout=step
        )
        hidden: Tensor = result.last_hidden_state[:, 0]
        return hidden


def prefill(engine: Engine, decoder: Any, cache: SlotCache, prompts: list[list[int]], slots: list[list[int]]) -> Tensor:
    """Computes prompts in one row, and fills all slots of each. Hidden states at their ends, [prompts, hidden]"""
    row, body = pack_row(prompts, range(len(prompts))), engine.body
    if body.packs:
        hidden = body.packed(row, Prefill(row, cache, slots, body.path))
    else:  # one prompt a row, by a decoder of its own
        layout = Prefill(row, cache, slots, "dense")
        result = decoder(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False, layout=layout)
        hidden = result.last_hidden_state[0]
    ends = torch.tensor([int(path[-1]) for path in row.nodes], device=cache.device)
    return hidden.index_select(0, ends)


def prefill_new(decoder: Any, cache: SlotCache, new: list[list[int]], slots: list[int], starts: list[int]) -> Tensor:
    """Computes what is new in sequences whose slots hold how they begin. Hidden states at their ends, [new, hidden]"""
    layout = Extension(new, cache, slots, starts)
    result = decoder(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False, layout=layout)
    ends = torch.tensor(layout.sizes, device=cache.device).cumsum(0) - 1
    hidden: Tensor = result.last_hidden_state[0].index_select(0, ends)
    return hidden


def prepare_layouts(engine: Engine) -> tuple[Any, SlotCache] | None:
    """A decoder whose attention takes layouts, and an empty cache for it; None if decoding by layouts does not give
    what the trainer computes. Without packed rows the engine's decoder has another attention, so a copy on the same
    weights is used."""
    embedding = engine.module.get_input_embeddings().weight
    packs = engine.body.packs
    try:
        decoder = engine.body.decoder if packs else copy_for_layouts(engine.module)
        probe, zeros = Probe(), torch.zeros(1, 1, dtype=torch.int64, device=embedding.device)
        decoder(input_ids=zeros, position_ids=zeros, use_cache=False, layout=probe)
        cache = SlotCache(probe.shapes, embedding.device, embedding.dtype)
        if packs:
            return decoder, cache
        expected = trainer_logprobs(engine)
        gap = mean_decode_kl(expected, step_logprobs(engine, decoder, PlainStep(decoder), cache))
        bound = max(decode_rounding_kl(expected, cache.dtype, units=8), 1e-9)
        reason = f"decoded token by token its distributions differ (KL {gap:.2g}, rounding explains {bound:.2g})"
        if gap <= bound:
            return decoder, cache
    except (Unsupported, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
    log.warning(
        "sampling with the model's own cache, prompts of one length at a time, which is slower; %s takes no other: %s",
        type(engine.module).__name__,
        reason,
    )
    return None


def copy_for_layouts(module: Any) -> Any:
    """A decoder on the same weights whose attention takes layouts."""
    copied = share_weights(module)
    copied.config._attn_implementation = IMPLEMENTATION
    return copied.base_model


def choose_decode_step(engine: Engine, decoder: Any, cache: SlotCache) -> Step:
    """The short step, if there is one and it gives what the model's own code gives."""
    plain, config = PlainStep(decoder), engine.module.config.get_text_config()
    if config.model_type not in ALIKE or config.hidden_act != "silu":
        return plain
    try:
        short, expected = LlamaStep(decoder), trainer_logprobs(engine)
        usual, gap = (mean_decode_kl(expected, step_logprobs(engine, decoder, step, cache)) for step in (plain, short))
    except (AttributeError, TypeError, RuntimeError) as reason:
        log.warning("sampling by the model's own code, which is slower: %s", reason)
        return plain
    if not gap <= SPREAD * usual + decode_rounding_kl(expected, cache.dtype, units=1):
        log.warning(
            "sampling by the model's own code, which is slower: the short step is %.2g from the trainer (KL), the "
            "model's own %.2g",
            gap,
            usual,
        )
        return plain
    return short


def sample_tokens(engine: Engine) -> np.ndarray:
    length = min(LENGTH, engine.max_context)
    return np.random.default_rng(0).integers(0, engine.vocabulary, (SEQUENCES, length))


def trainer_logprobs(engine: Engine) -> Tensor:
    """Log-probs [sequences, compared, vocabulary] as the trainer computes them."""
    tokens = sample_tokens(engine)
    row = pack_row([list(map(int, sequence)) for sequence in tokens], range(len(tokens)), share=False)
    nodes = np.stack([path[-COMPARED:] for path in row.nodes])
    return decode_head_logprobs(engine, engine.body.hidden(row)[torch.from_numpy(nodes).to(engine.device)])


def step_logprobs(engine: Engine, decoder: Any, step: Step, cache: SlotCache) -> Tensor:
    """The same: the end of a prompt, and tokens one by one."""
    tokens = sample_tokens(engine)
    cache.resize(len(tokens), ROUND)
    cache.extend(ROUND)
    prompts, rest = np.split(tokens, [tokens.shape[1] - COMPARED + 1], axis=1)
    ends = [prefill(engine, decoder, cache, [prompt.tolist()], [[slot]]) for slot, prompt in enumerate(prompts)]
    found = [torch.cat(ends)]
    for position, column in enumerate(torch.from_numpy(rest).to(cache.device).unbind(1), prompts.shape[1]):
        found.append(step(column, Decoding(cache, torch.full_like(column, position), 0, ROUND)))
    cache.free()
    return decode_head_logprobs(engine, torch.stack(found, dim=1))


def decode_head_logprobs(engine: Engine, hidden: Tensor) -> Tensor:
    return engine.head.logits(hidden).double().log_softmax(-1)  # type: ignore[union-attr]


def mean_decode_kl(expected: Tensor, found: Tensor) -> float:
    """Mean KL from log-probs to log-probs, in nats."""
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def decode_rounding_kl(expected: Tensor, dtype: torch.dtype, units: int) -> float:
    """The KL that errors of so many units in the last digit of a usual logit make."""
    return float((units * torch.finfo(dtype).eps * expected.std(-1).mean()).square() / 2)

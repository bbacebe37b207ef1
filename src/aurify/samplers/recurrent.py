"""Sampling for models that cannot run packed rows (recurrent layers, unusual attention): one sequence at a time,
with the model's own cache. Slow, and right for every model that transformers can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aurify.engine.engine import Engine
from aurify.samplers.draw import draw

if TYPE_CHECKING:
    from aurify.samplers.inprocess import Sequence


def generate_plainly(engine: Engine, sequence: Sequence, stop_tokens: frozenset[int], version: int) -> None:
    """Fills the sequence's tokens, log-probs and versions."""
    assert engine.head is not None
    device = engine.module.get_input_embeddings().weight.device
    decoder, cache = engine.body.decoder, None
    inputs = torch.tensor([sequence.prompt], device=device)
    while len(sequence.tokens) < sequence.max_tokens:
        result = decoder(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = result.past_key_values if "past_key_values" in result else result.cache_params
        logits = engine.head.logits(result.last_hidden_state[:, -1])
        tokens, logprobs = draw(logits, [sequence.params], [sequence.generator.random()])
        sequence.tokens += tokens
        sequence.logprobs += logprobs
        sequence.versions.append(version)
        sequence.tell(tokens[0])
        inputs = torch.tensor([tokens], device=device)
        if tokens[0] in stop_tokens or tokens[0] in sequence.params.stop_tokens or ends_with_stop(engine, sequence):
            return


def ends_with_stop(engine: Engine, sequence: Sequence) -> bool:
    """Whether the text so far contains a stop string (one may begin in an earlier token than the last)."""
    if not sequence.params.stop:
        return False
    tail = engine.tokenizer.decode(sequence.tokens[-max(map(len, sequence.params.stop)) - 8 :])
    return any(text in tail for text in sequence.params.stop)

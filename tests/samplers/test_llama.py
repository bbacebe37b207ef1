"""The short decoding step gives what the model's own code gives, and stays away where it would not."""

from __future__ import annotations

import logging

import pytest
import torch
from models import random_model

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.samplers.cache import Decoding
from aurify.samplers.llama import LlamaStep
from aurify.samplers.step import PlainStep, choose_step, divergence, prepare_layouts, trained
from aurify.types import Datum

ALIKE = [
    ("Llama", {}),
    ("Llama", {"attention_bias": True, "head_dim": 32, "num_key_value_heads": 4}),
    ("Mistral", {"sliding_window": 5}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 32}),
]


def engine_of(architecture: str, options: dict, lora: bool) -> Engine:
    engine = Engine(random_model(architecture, **options), lora=LoraConfig(rank=4) if lora else None)
    generator = torch.Generator().manual_seed(1)
    for parameter in engine.module.parameters():  # norms of 1 and biases of 0 would hide a mistake
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    if engine.adapter is not None:
        engine.adapter.merge()
    assert engine.body.packs
    return engine


def hidden_states(engine: Engine, step) -> torch.Tensor:
    """Of two sequences, [tokens, 2, hidden]: a short one, and one that is longer than the window."""
    config = engine.module.config
    cache = SlotCache(3, config.num_key_value_heads, torch.device("cpu"), torch.float32)
    cache.reserve(16)
    tokens = torch.randint(0, 300, (12, 2), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), engine.adapter.using("merged") if engine.adapter else torch.inference_mode():
        return torch.stack([step(row, Decoding(cache, [k, k + 3], first=1)) for k, row in enumerate(tokens)])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("architecture", "options"), ALIKE)
def test_the_short_step_is_the_models(architecture, options, lora):
    engine = engine_of(architecture, options, lora)
    short, plain = LlamaStep(engine.body.decoder), PlainStep(engine.body.decoder)
    before = hidden_states(engine, short)
    torch.testing.assert_close(before, hidden_states(engine, plain), rtol=1e-4, atol=1e-4)
    engine.forward_backward([Datum([5, 6, 7, 8], [0.0, 1.0, 1.0, 1.0])], SFT())
    engine.optim_step(1e-2)
    after = hidden_states(engine, short)  # the weights as they are now
    torch.testing.assert_close(after, hidden_states(engine, plain), rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01
    with torch.inference_mode(), engine.adapter.using("merged") if engine.adapter else torch.inference_mode():
        assert isinstance(step_of(engine), LlamaStep)


def test_another_kind_of_model_keeps_its_own_code():
    for architecture, options in (("Olmo2", {}), ("Llama", {"hidden_act": "gelu"})):
        engine = engine_of(architecture, options, lora=False)
        assert isinstance(step_of(engine), PlainStep)
    engine = engine_of("Llama", {}, lora=False)
    engine.module.to(torch.bfloat16)
    assert isinstance(step_of(engine), PlainStep)


def test_a_model_that_is_not_what_it_says_keeps_its_own_code(monkeypatch, caplog):
    engine = engine_of("Llama", {}, lora=False)
    mlp = engine.body.decoder.layers[1].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) * 1.1)
    with caplog.at_level(logging.WARNING, "aurify"), torch.inference_mode():
        assert isinstance(step_of(engine), PlainStep)
    assert "the short step differs by" in caplog.text
    engine = engine_of("Llama", {}, lora=False)
    del engine.body.decoder.layers[0].mlp.gate_proj
    with caplog.at_level(logging.WARNING, "aurify"), torch.inference_mode():
        assert isinstance(step_of(engine), PlainStep)
    assert "gate_proj" in caplog.text

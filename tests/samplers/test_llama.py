"""The short decoding step gives what the model's own code gives, in each dtype, and stays away where it would not."""

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
from aurify.samplers.step import (
    PlainStep,
    choose_decode_step,
    decode_rounding_kl,
    mean_decode_kl,
    prepare_layouts,
    step_logprobs,
    trainer_logprobs,
)
from aurify.types import Datum

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
ALIKE = [
    ("Llama", {}),
    ("Llama", {"attention_bias": True, "head_dim": 32, "num_key_value_heads": 4}),
    ("Mistral", {"sliding_window": 5}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 32}),
]


def make_engine(architecture: str, options: dict, lora: bool = False, dtype: torch.dtype = torch.float32) -> Engine:
    model = random_model(architecture, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():  # norms of 1 and biases of 0 would hide a mistake
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.module.to(dtype)
    engine = Engine(model, lora=LoraConfig(rank=4) if lora else None)
    if engine.adapter is not None:
        for layer in engine.adapter.layers.values():
            layer.lora_B.data += 0.1 * torch.randn(layer.lora_B.shape, generator=generator)
        engine.adapter.merge()
    assert engine.body.packs
    return engine


@torch.no_grad()
def hidden_states(engine: Engine, step) -> torch.Tensor:
    """Of two sequences, [tokens, 2, hidden]: a short one, and one that is longer than the window."""
    _, cache = prepare_layouts(engine)
    cache.resize(3, 64)
    cache.extend(16)
    tokens = torch.randint(0, 300, (12, 2), generator=torch.Generator().manual_seed(2))
    return torch.stack([step(row, Decoding(cache, torch.tensor([k, k + 3]), 1, 16)) for k, row in enumerate(tokens)])


@DTYPES
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("architecture", "options"), ALIKE)
def test_the_short_step_is_the_models(architecture, options, lora, dtype):
    engine = make_engine(architecture, options, lora, dtype)
    short, plain = LlamaStep(engine.body.decoder), PlainStep(engine.body.decoder)
    # in bf16 each operation rounds as the model's own does: the same numbers, unless a kernel sums otherwise
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    before = hidden_states(engine, short)
    torch.testing.assert_close(before, hidden_states(engine, plain), **close)
    engine.forward_backward([Datum([5, 6, 7, 8], [0.0, 1.0, 1.0, 1.0])], SFT())
    engine.optim_step(1e-2)
    after = hidden_states(engine, short)  # the weights as they are now
    torch.testing.assert_close(after, hidden_states(engine, plain), **close)
    assert (after - before).abs().max() > 0.01
    with torch.no_grad():
        assert isinstance(choose_decode_step(engine, *prepare_layouts(engine)), LlamaStep)


@DTYPES
def test_another_kind_of_model_keeps_its_own_code(dtype):
    for architecture, options in (("Olmo2", {}), ("Llama", {"hidden_act": "gelu"})):
        engine = make_engine(architecture, options, dtype=dtype)
        with torch.no_grad():
            assert isinstance(choose_decode_step(engine, *prepare_layouts(engine)), PlainStep)


class Shifted(LlamaStep):
    """Every token one position late."""

    def __call__(self, tokens, step):
        rotary = self.rotary
        self.rotary = lambda x, position_ids: rotary(x, position_ids=2 * position_ids)
        try:
            return super().__call__(tokens, step)
        finally:
            self.rotary = rotary


class Unmasked(LlamaStep):
    """Sees the zeros that lie ahead of it in the cache."""

    def __call__(self, tokens, step):
        step.mask = lambda window: torch.zeros(len(tokens), 1, 1, step.length)
        return super().__call__(tokens, step)


class Windowless(LlamaStep):
    def __init__(self, decoder):
        super().__init__(decoder)
        for layer in self.layers:
            layer.window = None


@DTYPES
@pytest.mark.parametrize("fault", ["product", "epsilon", Shifted, Unmasked, Windowless], ids=str)
def test_a_short_step_that_is_not_the_models_is_refused(fault, dtype, monkeypatch, caplog):
    engine = make_engine("Mistral", {"sliding_window": 5}, dtype=dtype)
    if fault == "product":  # the model does more than its modules say
        mlp = engine.body.decoder.layers[1].mlp
        plain = mlp.forward
        monkeypatch.setattr(mlp, "forward", lambda x: plain(x) * 1.2)
    elif fault == "epsilon":
        monkeypatch.setattr("aurify.samplers.llama.Norm.__call__", lambda self, x: self.weight * x)
    else:
        monkeypatch.setattr("aurify.samplers.step.LlamaStep", fault)
    with caplog.at_level(logging.WARNING, "aurify"), torch.no_grad():
        assert isinstance(choose_decode_step(engine, *prepare_layouts(engine)), PlainStep)
    assert "the short step is" in caplog.text


def test_a_model_without_the_parts_of_llama_keeps_its_own_code(caplog):
    engine = make_engine("Llama", {})
    with caplog.at_level(logging.WARNING, "aurify"), torch.no_grad():
        decoder, cache = prepare_layouts(engine)
        del engine.body.decoder.layers[0].mlp.gate_proj
        assert isinstance(choose_decode_step(engine, decoder, cache), PlainStep)
    assert "gate_proj" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_short_step_adds_nothing_to_the_gap_between_sampler_and_trainer(dtype):
    engine = make_engine("Llama", {}, dtype=dtype)
    with torch.no_grad():
        decoder, cache = prepare_layouts(engine)
        expected = trainer_logprobs(engine)
        usual, short = (
            mean_decode_kl(expected, step_logprobs(engine, decoder, step(decoder), cache))
            for step in (PlainStep, LlamaStep)
        )
    # The largest part is what the trainer's products of many rows and these of two round differently.
    assert short <= 1.2 * usual and usual < decode_rounding_kl(expected, dtype, units=8)

"""Inference is always in eval mode: the model's own dropout never acts, LoRA's only in `forward_backward`."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
import transformers
from models import random_model

from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Datum, SamplingParams

DROPPING = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "Llama": {"attention_dropout": 0.3},
}
SETTINGS = [{}, {"checkpointing": True}, {"lora": LoraConfig(rank=4, dropout=0.3)}]


def sequences(advantage: float = 1.0) -> list[Datum]:
    generator = np.random.default_rng(0)
    return [
        Datum(tokens, [0.0] * 4 + [1.0] * 16, [advantage] * 20, [-1.0] * 20)
        for tokens in generator.integers(3, 300, (6, 20)).tolist()
    ]


@pytest.mark.parametrize("architecture", DROPPING)
@pytest.mark.parametrize("setting", SETTINGS, ids=["plain", "checkpointing", "lora dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_and_ratios_know_no_dropout(architecture, setting, dtype):
    model = random_model("Llama", **DROPPING["Llama"])
    if architecture == "GPT2":
        config = transformers.GPT2Config(vocab_size=300, **DROPPING["GPT2"])
        model.module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.module.to(dtype)
    engine = Engine(model, **setting)
    data = sequences()
    known = engine.logprobs(data)
    assert engine.logprobs(data) == known
    old = [
        Datum(d.tokens, d.weights, d.advantages, d.logprobs, old_logprobs=v) for d, v in zip(data, known, strict=True)
    ]
    metrics = engine.forward_backward(old, GRPO(kl_coef=0.0))
    assert engine.optimizer.grads and not engine.module.training
    if "lora" not in setting:  # a fresh adapter has B = 0: nothing to drop either
        assert metrics["loss"] == pytest.approx(-1.0, abs=1e-6), "every ratio is 1"
    assert engine.logprobs(data) == known, "training leaves no mode behind"


def test_sampling_does_not_go_through_the_checkpoint(monkeypatch):
    engine = Engine(random_model(), checkpointing=True)
    assert engine.body.packs  # its check takes gradients
    recomputed = []
    monkeypatch.setattr("aurify.engine.recompute.checkpoint", lambda run, *a, **k: recomputed.append(run))

    async def sample() -> None:
        sampler = InProcessSampler(engine)
        await sampler.sample([5, 6, 7], SamplingParams(max_tokens=4, seed=0))
        await sampler.close()

    asyncio.run(sample())
    engine.logprobs(sequences())
    assert not recomputed
    with pytest.raises(AttributeError):  # the stand-in gives nothing back
        engine.forward_backward(sequences(), GRPO())
    assert recomputed

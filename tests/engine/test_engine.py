"""The engine as a whole: parity of its fast path, references, checkpoints, resume, ranks, memory tricks."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models import random_model

from aurify.algorithms.dpo import DPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.optim import OptimConfig, lr_at
from aurify.errors import UserError
from aurify.types import Datum

ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": 8},  # shorter than the sequences: the window acts on logical positions
    "Gemma3Text": {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "Granite": {"logits_scaling": 4.0},
    "Phi3": {},
}
LORA = LoraConfig(rank=4)


def groups(num_prompts: int = 3, completions: int = 3) -> list[Datum]:
    generator = np.random.default_rng(0)
    data = []
    for _ in range(num_prompts):
        prompt = generator.integers(3, 300, 20).tolist()
        for _ in range(completions):
            completion = generator.integers(3, 300, int(generator.integers(3, 40))).tolist()
            weights = [0.0] * len(prompt) + [1.0] * len(completion)
            data.append(Datum(prompt + completion, weights, advantages=[float(generator.normal())] * len(weights)))
    return data


def plain_logprobs(engine: Engine, datum: Datum) -> list[float]:
    """As a user of transformers would compute them: one row, the whole logits."""
    implementation = engine.module.config._attn_implementation
    engine.module.config._attn_implementation = engine.body.fallback
    with torch.no_grad():
        logits = engine.module(torch.tensor([datum.tokens])).logits[0].log_softmax(-1)
    engine.module.config._attn_implementation = implementation
    return [0.0 if not w else float(logits[t - 1, datum.tokens[t]]) for t, w in enumerate(datum.weights)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_rows_give_the_logprobs_of_plain_rows(architecture):
    """T21"""
    engine = Engine(random_model(architecture, **ARCHITECTURES[architecture]))
    assert engine.body.packs
    data = groups()
    for found, datum in zip(engine.logprobs(data), data, strict=True):
        assert found == pytest.approx(plain_logprobs(engine, datum), abs=1e-4)


def test_a_model_with_unusual_attention_falls_back_and_says_so(caplog):
    """Gemma 2 caps its attention scores."""
    engine = Engine(random_model("Gemma2", sliding_window=8, head_dim=16))
    assert not engine.body.packs
    assert "softcap" in caplog.text
    data = groups()
    for found, datum in zip(engine.logprobs(data), data, strict=True):
        assert found == pytest.approx(plain_logprobs(engine, datum), abs=1e-4)
    metrics = engine.forward_backward(data, SFT())
    assert metrics["ledger/tokens_shared"] == 0
    assert engine.optim_step(1e-3)["optim/grad_norm"] > 0


def test_threads_that_ask_first_at_once_wait_for_one_check():
    """A sampler and a trainer that begin together: the check switches the attention that both of them use."""
    engine, count = Engine(random_model("Llama")), 0
    plain = engine.body.plain

    def slow_plain(row):
        nonlocal count
        count += 1
        time.sleep(0.2)
        return plain(row)

    engine.body.plain = slow_plain  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: engine.logprobs(groups(1)), range(4)))
    assert engine.body.packs and count == 1
    assert all(result == results[0] for result in results)


def test_environment_tokens_are_context_only():
    """T2: other environment tokens change what later policy tokens are worth, and are never themselves trained."""
    engine = Engine(random_model())
    prompt, first, environment, second = [5, 6, 7], [8, 9], [10, 11, 12], [13, 14]
    weights = [0.0] * 3 + [1.0] * 2 + [0.0] * 3 + [1.0] * 2
    before = engine.logprobs([Datum(prompt + first + environment + second, weights)])[0]
    changed = engine.logprobs([Datum(prompt + first + [20, 21, 22] + second, weights)])[0]
    assert before[3:5] == changed[3:5]
    assert abs(before[8] - changed[8]) > 1e-4
    assert before[5:8] == [0.0] * 3

    # the loss does not ask how likely the environment was
    metrics = engine.forward_backward([Datum(prompt + first + environment + second, weights)], SFT())
    assert metrics["loss"] == pytest.approx(-sum(before) / 4, rel=1e-5)


@pytest.mark.parametrize("base", ["fresh", "continued"])
def test_reference_is_the_model_that_training_began_with(base, tmp_path):
    """T25: the adapter switched off (or set back) gives the first log-probs bit for bit, also after a resume."""
    data = groups()
    engine = Engine(random_model(), lora=LORA)
    if base == "continued":
        train(engine, data, 3)
        (tmp_path / "adapter").mkdir()
        engine.export(tmp_path / "adapter")
        model = random_model()
        model.adapter = tmp_path / "adapter"
        engine = Engine(model, lora=LORA)
    first = engine.logprobs(data)
    train(engine, data, 3)
    assert engine.logprobs(data) != first
    assert engine.logprobs(data, reference=True) == first
    engine.save(tmp_path / "state")
    model = random_model()
    model.adapter = tmp_path / "adapter" if base == "continued" else None
    resumed = Engine(model, lora=LORA)
    resumed.load(tmp_path / "state")
    assert resumed.logprobs(data, reference=True) == first
    assert resumed.logprobs(data) == engine.logprobs(data)


def test_full_fine_tuning_keeps_a_frozen_copy_only_if_asked():
    data = groups()
    engine = Engine(random_model())
    first = engine.logprobs(data, reference=True)  # nothing has changed yet: no copy needed
    assert engine.reference_body is None
    engine.keep_reference()
    train(engine, data, 2)
    assert engine.logprobs(data, reference=True) == first
    forgetful = Engine(random_model())
    train(forgetful, data, 1)
    with pytest.raises(ValueError, match="keep_reference"):
        forgetful.logprobs(data, reference=True)


def train(engine: Engine, data: list[Datum], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward(data, SFT())["loss"])
        engine.optim_step(1e-2)
    return losses


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_resume_gives_the_same_bits(lora, tmp_path):
    """T28, the engine's share of it"""
    data = groups()
    straight = Engine(random_model(), lora=lora)
    losses = train(straight, data, 6)
    first = Engine(random_model(), lora=lora)
    train(first, data, 3)
    first.save(tmp_path)
    resumed = Engine(random_model(seed=1) if lora is None else random_model(), lora=lora)
    resumed.load(tmp_path)
    assert train(resumed, data, 3) == losses[3:]
    assert resumed.version == 6
    for (name, a), (_, b) in zip(straight.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    """T22: activations recomputed in backward, with the dropout they had in forward"""
    results = []
    for checkpointing in (False, True):
        engine = Engine(random_model(), lora=LoraConfig(rank=4, dropout=dropout), checkpointing=checkpointing)
        for layer in engine.adapter.layers.values():
            torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
        engine.adapter.merge()
        torch.manual_seed(3)
        engine.forward_backward(groups(), SFT())
        results.append(torch.cat([p.grad.reshape(-1) for p in engine.trainable]))
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 1e-6


def test_merged_adapter_gives_the_gradients_of_the_plain_form():
    """The fast form multiplies by W + sBA; the plain one by W and then by A and B."""
    gradients = []
    for merged in (True, False):
        engine = Engine(random_model(), lora=LORA)
        for k, layer in enumerate(engine.adapter.layers.values()):
            torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(k))
            layer.merge()
            if not merged:
                layer.merged = None
        engine.forward_backward(groups(), SFT())
        gradients.append(torch.cat([p.grad.reshape(-1) for p in engine.trainable]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5


def test_bf16_adapters_and_weights_learn():
    """fp32 masters of bf16 weights: an update of 1e-4 of a weight is not rounded away."""
    for lora in (None, LORA):
        model = random_model()
        model.module.to(torch.bfloat16)
        engine = Engine(model, lora=lora, optim=OptimConfig(lr=1e-3))
        data = groups(1, 2)
        losses = [engine.forward_backward(data, SFT())["loss"] for _ in range(1)]
        for _ in range(10):
            engine.optim_step(1e-3) if engine.calls else None
            losses.append(engine.forward_backward(data, SFT())["loss"])
        assert losses[-1] < losses[0] - 0.05
        assert all(master.dtype == torch.float32 for master in engine.optimizer.masters)


def test_masters_remember_what_bf16_cannot():
    model = random_model()
    model.module.to(torch.bfloat16)
    engine = Engine(model)
    parameter, master = engine.optimizer.parameters[0], engine.optimizer.masters[0]
    for _ in range(4):
        engine.forward_backward(groups(1, 1), SFT())
        engine.optim_step(1e-7)
    assert torch.equal(parameter, master.to(torch.bfloat16))
    assert not torch.equal(parameter.float(), master)


def test_gradients_are_clipped():
    engine = Engine(random_model(), optim=OptimConfig(max_grad_norm=1e-3))
    engine.forward_backward(groups(), SFT())
    before = engine.optim_step(1e-3)["optim/grad_norm"]
    assert before > 1e-3  # the norm that is reported is the one before clipping


def test_schedules():
    linear = OptimConfig(lr=1.0, schedule="linear", warmup_steps=2)
    assert [lr_at(linear, k, 6) for k in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    cosine = OptimConfig(lr=1.0, schedule="cosine", min_lr_ratio=0.1)
    assert lr_at(cosine, 0, 10) == 1.0 and lr_at(cosine, 5, 10) == pytest.approx(0.55)
    assert lr_at(OptimConfig(lr=0.3), 7, 10) == 0.3
    share = OptimConfig(lr=1.0, schedule="linear", warmup_ratio=0.3)
    assert [lr_at(share, k, 6) for k in range(6)] == [lr_at(linear, k, 6) for k in range(6)]  # 1.8 of 6 steps are 2
    with pytest.raises(UserError, match=r"warmup_ratio: 0\.1 and warmup_steps: 2 both"):
        OptimConfig(warmup_steps=2, warmup_ratio=0.1)


def test_errors_name_the_mend():
    engine = Engine(random_model())
    with pytest.raises(UserError, match="no trainable token"):
        engine.forward_backward([Datum([1, 2], [0.0, 0.0])], SFT())
    with pytest.raises(UserError, match=r"outside 0\.\.299"):
        engine.forward_backward([Datum([1, 300], [0.0, 1.0])], SFT())
    with pytest.raises(UserError, match="context is 40"):
        Engine(random_model(max_position_embeddings=40)).forward_backward([Datum([1] * 41, [0.0] + [1.0] * 40)], SFT())
    with pytest.raises(ValueError, match="needs ref_logprobs"):
        engine.forward_backward([Datum([1, 2], [0.0, 1.0], unit=0)] * 2, DPO())
    engine = Engine(random_model(), optim=OptimConfig(max_skipped_steps=0))
    with pytest.raises(UserError, match="not finite in 1 steps in a row"):
        engine.forward_backward([Datum([1, 2], [0.0, 1.0], advantages=[0.0, float("nan")])], GRPO())
        engine.optim_step(1e-3)
    with pytest.raises(UserError, match="no layer is named"):
        Engine(random_model(), lora=LoraConfig(targets=["query"]))


def test_reward_model_pools_the_last_token_of_each_sequence():
    """T16: by length, never by comparing ids: with pad = 0 inside and at the end of a sequence, packed or alone."""
    engine = Engine(random_model(scalar_head=True))
    data = [Datum(tokens, [0.0] * len(tokens)) for tokens in ([5, 0, 7, 0], [5, 0, 7, 0, 0], [9, 8], [5, 0])]
    together = engine.scores(data)
    alone = [engine.scores([datum])[0] for datum in data]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 5) for score in together}) == 4


def test_algorithms_with_weights_of_data_count_weights():
    """One denominator: the sum of the weights, over all micro-batches."""
    datum = Datum([1, 2, 3], [0.0, 0.5, 2.0])
    engine = Engine(random_model())
    logprobs = engine.logprobs([datum])[0]
    expected = -(0.5 * logprobs[1] + 2 * logprobs[2]) / 2.5
    assert engine.forward_backward([datum], SFT())["loss"] == pytest.approx(expected, rel=1e-5)
    doubled = dataclasses.replace(datum, weights=[0.0, 1.0, 4.0])
    assert engine.forward_backward([doubled], SFT())["loss"] == pytest.approx(expected, rel=1e-5)


def test_dropout_acts_in_training_alone():
    """T20: log-probs taken for the ratio know no dropout, also in an engine that trains with it."""
    engines = [Engine(random_model(), lora=LoraConfig(rank=4, dropout=dropout)) for dropout in (0.0, 0.5)]
    for engine in engines:
        for layer in engine.adapter.layers.values():
            torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
        engine.adapter.merge()
    data = groups()
    plain, dropping = engines
    assert dropping.logprobs(data) == plain.logprobs(data)
    assert dropping.forward_backward(data, SFT())["loss"] != plain.forward_backward(data, SFT())["loss"]

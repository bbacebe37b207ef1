"""What fits into memory: the plan, the retreat when it does not, and counted bytes."""

from __future__ import annotations

import logging
import weakref

import numpy as np
import pytest
import torch
from models import random_model

from aurify.algorithms.sft import SFT
from aurify.engine import budget, recompute
from aurify.engine.budget import LEAST_TOKENS, plan_memory
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.offload import HostStore
from aurify.engine.packing import pack_row
from aurify.engine.recompute import recompute_layers
from aurify.errors import UserError
from aurify.types import Datum

CUDA = torch.device("cuda")
GIB = 2**30


def sequences(num: int = 24, length: int = 60) -> list[Datum]:
    generator = np.random.default_rng(0)
    return [Datum(generator.integers(3, 300, length).tolist(), [0.0] * 5 + [1.0] * (length - 5)) for _ in range(num)]


def gradient(engine: Engine) -> torch.Tensor:
    return torch.cat([grad.flatten() for grad in engine.optimizer.grads])


# ------------------------------------------------------------------ the plan


@pytest.fixture
def shape():
    """Of Qwen2.5-0.5B: 24 layers, hidden 896, intermediate 4864; without its weights."""
    with torch.device("meta"):
        model = random_model("Qwen2").module
        model.config.hidden_size, model.config.intermediate_size, model.config.num_hidden_layers = 896, 4864, 24
    return model.bfloat16()


@pytest.mark.parametrize(
    ("gib", "tokens", "recompute"), [(80, 16384, False), (24, 9856, False), (12, 4864, False), (6, 16384, True)]
)
def test_the_micro_batch_fits_the_card(shape, gib, tokens, recompute, monkeypatch):
    monkeypatch.setattr(budget, "usable_memory", lambda device: gib * GIB)
    plan = plan_memory(shape, CUDA, 0, None, "auto")
    assert (plan.micro_batch_tokens, plan.checkpointing) == (tokens, recompute)
    assert plan.micro_batch_tokens * plan.token_bytes <= 0.6 * gib * GIB


def test_what_was_asked_for_is_kept(shape, monkeypatch):
    monkeypatch.setattr(budget, "usable_memory", lambda device: 6 * GIB)
    assert not plan_memory(shape, CUDA, 0, None, False).checkpointing
    plan = plan_memory(shape, CUDA, 0, 777, "auto")
    assert plan.micro_batch_tokens == 777 and not plan.checkpointing  # 777 tokens fit as they are
    assert plan_memory(shape, CUDA, 5 * GIB, 777, "auto").checkpointing  # not beside the optimiser
    assert plan_memory(shape, CUDA, 60 * GIB, None, "auto").micro_batch_tokens == LEAST_TOKENS


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Gemma3Text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_activations_are_what_the_plan_counts(architecture, dtype):
    """Counted by hooks on a wide model, in which small vectors do not matter."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64}
    row = pack_row([sequences(1, 256)[0].tokens], [0])
    saved = {}
    for checkpointing in (False, True):
        model = random_model(architecture, **sizes)
        model.module.to(dtype)
        engine = Engine(model, lora=LoraConfig(rank=8), checkpointing=checkpointing)
        assert engine.body.packs
        weights = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
        weights |= {
            layer.merged.untyped_storage().data_ptr()
            for layer in engine.adapter.layers.values()
            if layer.merged is not None
        }
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages=storages, weights=weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = engine.body.hidden(row)
        saved[checkpointing] = sum(storages.values()) / len(row.tokens)
        del hidden
        plan = plan_memory(engine.module, engine.device, 0, None, checkpointing)
        if not checkpointing:
            assert 0.6 * plan.token_bytes < saved[False] < 1.3 * plan.token_bytes
    assert saved[True] < 0.25 * saved[False]


# ------------------------------------------------------------------ the retreat


class Full:
    """Runs out of memory for rows of more than `limit` nodes, in the middle of the call."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        hidden, self.failed = engine.body.hidden, 0

        def limited(row):
            if len(row.tokens) > limit:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return hidden(row)

        monkeypatch.setattr(engine.body, "hidden", limited)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_memory_is_one_retreat_with_the_same_gradients(lora, dtype, monkeypatch, caplog):
    found = []
    for limit in (10**9, 700):
        model = random_model()
        model.module.to(dtype)
        engine = Engine(model, lora=lora, micro_batch_tokens=1024)
        data = [*sequences(24), *sequences(2, 40)]
        assert engine.body.packs
        full = Full(engine, monkeypatch, limit)
        engine.forward_backward(data[:6], SFT())  # an earlier term of the step stays
        with caplog.at_level(logging.WARNING, "aurify"):
            metrics = engine.forward_backward(data, SFT())
        found.append(gradient(engine))
        assert (full.failed > 0) == (engine.retreats > 0) == ("ledger/retreats" in metrics) == (limit == 700)
    assert engine.micro_batch_tokens == 512 and caplog.text.count("micro-batches of 512 tokens") == 1
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert float((found[0] - found[1]).norm() / found[0].norm()) < tolerance and float(found[0].norm()) > 0


def test_log_probs_retreat_too(monkeypatch):
    engine = Engine(random_model(), micro_batch_tokens=1024)
    expected = engine.logprobs(sequences())
    Full(engine, monkeypatch, 700)
    for mine, other in zip(engine.logprobs(sequences()), expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    assert engine.retreats == 1


def test_where_nothing_helps_the_error_stays(monkeypatch):
    engine = Engine(random_model(), micro_batch_tokens=1024)
    assert engine.body.packs
    Full(engine, monkeypatch, 10)
    with pytest.raises(torch.OutOfMemoryError):
        engine.forward_backward(sequences(), SFT())
    assert engine.micro_batch_tokens < 2 * LEAST_TOKENS and not engine.optimizer.grads


def test_other_errors_are_not_taken_for_it(monkeypatch):
    engine = Engine(random_model())

    def fail(row):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine.body, "hidden", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        engine.logprobs(sequences(1))
    assert engine.retreats == 0


def test_checkpointing_that_a_model_cannot_do_is_an_error(monkeypatch):
    monkeypatch.setattr(recompute, "decoder_layers", lambda module: [])
    monkeypatch.setattr(budget, "usable_memory", lambda device: 0)
    with pytest.raises(UserError, match=r"engine\.checkpointing.*set it to false"):
        Engine(random_model(), checkpointing=True)
    assert not Engine(random_model(), checkpointing="auto").checkpointing


# ------------------------------------------------------------------ counted bytes


def bytes_of(engine: Engine) -> int:
    """All tensors that the engine holds beside the model's own weights."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for n, p in engine.module.named_parameters() if ".lora_" not in n}

    def count(tensor: torch.Tensor | None) -> None:
        if tensor is not None and tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for parameter in engine.module.parameters():
        count(parameter.data)
        count(parameter.grad)
    for layer in engine.adapter.layers.values() if engine.adapter else ():
        count(layer.merged)
        for tensor in layer.rounded or ():
            count(tensor)
    for master in engine.optimizer.masters:
        count(master.data)
        count(master.grad)
        for value in engine.optimizer.adamw.state[master].values():
            count(value)
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_costs_its_own_parameters_and_their_optimiser(dtype):
    """In bf16 nothing else; in fp32 on a CPU also the merged weights, where they pay."""
    model = random_model()
    model.module.to(dtype)
    engine = Engine(model, lora=LoraConfig(rank=4))
    engine.forward_backward(sequences(2), SFT())
    held = bytes_of(engine)
    num = sum(parameter.numel() for parameter in engine.adapter.parameters)
    expected = num * (8 if dtype == torch.float32 else 10)  # weight, gradient, and the weight in bf16
    if dtype == torch.float32:
        expected += sum(4 * layer.base.weight.numel() for layer in engine.adapter.layers.values())
    assert held == expected
    engine.optim_step(1e-3)
    moments = 8 * num + 4 * len(engine.adapter.parameters)  # and a count of steps for each tensor
    assert bytes_of(engine) == expected - 4 * num + moments


def test_full_fine_tuning_in_bf16_holds_18_bytes_a_parameter():
    model = random_model()
    model.module.to(torch.bfloat16)
    engine = Engine(model)
    most = 0

    def watch(parameter: torch.Tensor) -> None:
        nonlocal most
        grads = sum(p.grad.numel() * 2 for p in engine.trainable if p.grad is not None)
        most = max(most, grads)

    for parameter in engine.trainable:
        parameter.register_post_accumulate_grad_hook(watch)
    engine.forward_backward(sequences(2), SFT())
    engine.optim_step(1e-3)
    engine.forward_backward(sequences(2), SFT())
    num = sum(parameter.numel() for parameter in engine.trainable)
    assert most == 0, "a gradient in bf16 is handed over before the next one is made"
    assert bytes_of(engine) == 16 * num + 4 * len(engine.trainable)  # beside the 2 of the weights


def test_loading_makes_no_second_optimiser_state(tmp_path):
    engine = Engine(random_model(), lora=LoraConfig(rank=4))
    for _ in range(2):
        engine.forward_backward(sequences(2), SFT())
        engine.optim_step(1e-3)
    engine.save(tmp_path)
    before = {id(v): v.data_ptr() for state in engine.optimizer.adamw.state.values() for v in state.values()}
    expected = engine.logprobs(sequences(2))
    engine.forward_backward(sequences(2), SFT())
    engine.optim_step(1e-2)
    engine.load(tmp_path)
    after = {id(v): v.data_ptr() for state in engine.optimizer.adamw.state.values() for v in state.values()}
    assert before == after, "in place"
    assert engine.logprobs(sequences(2)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layer_inputs_in_host_memory_change_no_gradient(dropout, dtype):
    """Issue 17, Shows 5. What the device would keep for backward, with and without, is counted."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}
    found, kept = [], []
    for offload in (False, True):
        model = random_model(**sizes)
        model.module.to(dtype)
        store = HostStore()
        engine = Engine(model, lora=LoraConfig(rank=8, dropout=dropout), checkpointing=not offload)
        for layer in engine.adapter.layers.values():
            torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
        engine.adapter.merge()
        if offload:
            assert recompute_layers(engine.module, engine.adapter, store)
        alive = watch_layer_inputs(engine)
        row = pack_row([sequences(1, 256)[0].tokens], [0])
        hidden = engine.body.hidden(row)
        kept.append(sum(nbytes for reference, nbytes in alive if reference() is not None))
        del hidden
        for _ in range(2):  # the second call fetches nothing of the first
            torch.manual_seed(3)
            engine.forward_backward(sequences(6), SFT())
        found.append(gradient(engine))
        if offload:
            assert store.last is None and store.num_bytes > 0
    assert torch.equal(*found)
    inputs = 5 * 256 * 64 * dtype.itemsize
    assert kept == [inputs, 0]


def watch_layer_inputs(engine: Engine) -> list[tuple[weakref.ref, int]]:
    """Tensors that go into layers from now on, and their sizes."""
    seen: list[tuple[weakref.ref, int]] = []

    def see(layer, arguments):
        if torch.is_grad_enabled():
            storage = arguments[0].untyped_storage()
            seen.append((weakref.ref(storage), storage.nbytes()))

    for layer in recompute.decoder_layers(engine.module):
        layer.register_forward_pre_hook(see)
    return seen


def test_on_a_cpu_layer_inputs_stay_where_they_are(shape, monkeypatch):
    engine = Engine(random_model(), checkpointing="offload")
    assert engine.store is None and engine.checkpointing and engine.describe()["checkpointing"] is True
    monkeypatch.setattr(budget, "usable_memory", lambda device: 6 * GIB)
    plans = [plan_memory(shape, CUDA, 0, None, checkpointing) for checkpointing in (True, "offload")]
    assert plans[0].token_bytes - plans[1].token_bytes == 22 * 2 * 896

"""Formulas of memory against counted bytes: weights, adapter, optimiser, gradients and cache to the byte, activations
against what autograd saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import random_model
from scripts_of_ours import ROOT, load_script

from aurify.algorithms.sft import SFT
from aurify.engine import footprint
from aurify.engine.adapter import choose_adapted_layers
from aurify.engine.cpu.gathered import count_gathered_rows, gather_key_blocks
from aurify.engine.engine import Engine
from aurify.engine.footprint import Training
from aurify.engine.lora import LoraConfig
from aurify.engine.packing import pack_row
from aurify.samplers.step import prepare_layouts
from aurify.types import Datum

WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64}
DTYPES = [torch.float32, torch.bfloat16]


def open_engine(architecture: str, dtype: torch.dtype, lora: LoraConfig | None, **options) -> Engine:
    model = random_model(architecture, **WIDE)
    model.module.to(dtype)
    return Engine(model, lora=lora, **{"checkpointing": False} | options)


def make_row(num: int, length: int):
    generator = np.random.default_rng(0)
    return pack_row([generator.integers(3, 300, length).tolist() for _ in range(num)], list(range(num)))


def nbytes(tensors) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_weights_optimiser_and_gradients_to_the_byte(architecture, dtype, lora):
    engine = open_engine(architecture, dtype, lora)
    shape, training, width = (
        footprint.read_shape(engine.module),
        footprint.read_training_memory(engine.module),
        dtype.itemsize,
    )
    base = [p for name, p in engine.module.named_parameters() if ".lora_" not in name]
    assert footprint.weight_bytes(shape, width) == nbytes(base)
    data = [Datum(list(range(5, 45)), [0.0] * 8 + [1.0] * 32)]
    engine.forward_backward(data, SFT())
    optimizer = engine.optimizer
    assert footprint.gradient_bytes(training) == nbytes(optimizer.grads)
    engine.optim_step(1e-3)
    moments = [value for state in optimizer.adamw.state.values() for value in state.values() if value.ndim]
    masters = [m for m, p in zip(optimizer.masters, optimizer.parameters, strict=True) if m is not p]
    assert footprint.optimizer_bytes(training, width) == nbytes([*moments, *masters])
    layers = engine.adapter.layers.values() if engine.adapter else ()
    held = [tensor for layer in layers for tensor in (layer.merged, layer.lora_A, layer.lora_B, *(layer.rounded or ()))]
    assert footprint.adapter_bytes(training, width) == nbytes(held)


def test_the_plan_of_a_skeleton_is_that_of_the_engine():
    """Without weights the adapter's size comes from the layers that it will be on."""
    from aurify.models.model import LoadedModel
    from aurify.pipeline.bulk import read_row_sizes

    with torch.device("meta"):
        bare = random_model("Qwen2", **WIDE).module
    sizes = read_row_sizes(LoadedModel(bare, None, "bare"), LoraConfig(rank=8))
    for dtype in DTYPES:
        engine = open_engine("Qwen2", dtype, LoraConfig(rank=8))
        assert sizes.training(8, merges=dtype == torch.float32) == footprint.read_training_memory(engine.module)
        assert sizes.shape == footprint.read_shape(engine.module)
    assert sizes.training(None, merges=False) == footprint.read_training_memory(random_model("Qwen2", **WIDE).module)
    assert sizes.num_adapted == len(choose_adapted_layers(bare, LoraConfig()))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Mistral"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_activations_are_what_autograd_saves(architecture, dtype, lora):
    for num, length in ((1, 512), (4, 128)):
        row = make_row(num, length)
        saved = count_saved(open_engine(architecture, dtype, lora), row)
        engine = open_engine(architecture, dtype, lora)
        shape, training = footprint.read_shape(engine.module), footprint.read_training_memory(engine.module)
        keys, entries = count_gathered_rows(row)
        token = footprint.token_activation_bytes(shape, dtype.itemsize, training, "kept", keys / len(row.tokens))
        planned = len(row.tokens) * token
        assert saved == pytest.approx(planned + entries * dtype.itemsize, rel=0.025), (num, saved / planned)


def test_recomputed_activations_are_the_inputs_of_layers():
    row = make_row(1, 512)
    engine = open_engine("Llama", torch.bfloat16, LoraConfig(rank=8), checkpointing=True)
    inputs = 4 * 2 * 256  # layers, bytes, hidden
    assert count_saved(engine, row) / 512 == pytest.approx(inputs + 256 * 6, rel=0.25)
    shape, training = footprint.read_shape(engine.module), footprint.read_training_memory(engine.module)
    kept, recomputed, offloaded = (
        footprint.token_activation_bytes(shape, 2, training, how) for how in ("kept", "recomputed", "offloaded")
    )
    layer = footprint.layer_activation_bytes(shape, 2, training)
    assert recomputed == inputs + layer + 256 * 6 and offloaded == recomputed - 2 * 2 * 256 and kept > 3 * layer


def count_saved(engine: Engine, row) -> int:
    """Bytes that autograd saves in the decoder, beside weights."""
    assert engine.body.packs
    own = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
    layers = engine.adapter.layers.values() if engine.adapter else ()
    own |= {layer.merged.untyped_storage().data_ptr() for layer in layers if layer.merged is not None}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = engine.body.hidden(row)
    total = sum(storage.nbytes() for storage in storages.values())
    del hidden
    return total


def test_blocks_are_counted_as_they_are_gathered():
    for row in (make_row(1, 700), make_row(5, 90)):
        gathered = gather_key_blocks(row, None, torch.float32, torch.device("cpu"))
        entries = sum(block.mask.numel() for block in gathered.blocks)
        assert count_gathered_rows(row) == (len(gathered.keys), entries)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_to_the_byte(architecture, dtype):
    engine = open_engine(architecture, dtype, None)
    _, cache = prepare_layouts(engine)
    cache.resize(3, 128)
    planned = footprint.kv_cache_bytes(footprint.read_shape(engine.module), dtype.itemsize, 3, 128)
    assert planned == cache.num_bytes == nbytes([*cache.keys.values(), *cache.values.values()])


def test_quantised_linear_layers_and_the_rest_in_the_model_s_dtype():
    module = random_model("Llama", **WIDE, tie_word_embeddings=True).module
    shape = footprint.read_shape(module)
    linear = sum(layer.weight.numel() for layer in choose_adapted_layers(module, LoraConfig()).values())
    assert shape.linear == linear
    rest = sum(parameter.numel() for parameter in module.parameters()) - linear
    assert footprint.weight_bytes(shape, 2, "nf4") == round(2 * rest + linear * 4.127 / 8)
    assert footprint.weight_bytes(shape, 2, "int8") == 2 * rest + linear


def test_the_head_is_counted_by_chunks():
    shape = footprint.read_shape(random_model("Llama", **WIDE).module)
    small = footprint.head_activation_bytes(shape, 2, "cpu", 10, trained=False)
    assert small == 10 * 300 * 6 and footprint.head_activation_bytes(shape, 4, "cpu", 10, trained=False) == 10 * 300 * 4
    assert footprint.head_activation_bytes(shape, 2, "cpu", 10**6, trained=False) == 2048 * 300 * 6
    assert footprint.head_activation_bytes(shape, 4, "cpu", 10, trained=True) == 10 * 300 * 4 + 300 * 256 * 4
    assert Training(5, whole=True).adapter == 0


def test_the_table_of_the_docs_is_what_the_script_makes_of_the_models_own_configurations():
    import transformers

    table = load_script("memory_table")
    assert table.make_table() in (ROOT / "docs" / "memory-plan.md").read_text(encoding="utf-8")
    for name, family in (("Qwen2.5-0.5B", "Qwen2"), ("Qwen3-8B", "Qwen3"), ("Llama-3.1-8B", "Llama")):
        layers, hidden, inner, heads, kv_heads, size, vocabulary, tied, _, _ = table.FAMILIES[name]
        config = getattr(transformers, f"{family}Config")(
            num_hidden_layers=layers, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads,
            num_key_value_heads=kv_heads, head_dim=size, vocab_size=vocabulary, tie_word_embeddings=tied,
        )  # fmt: skip
        with torch.device("meta"):
            module = getattr(transformers, f"{family}ForCausalLM")(config)
        assert table.make_shape(name)[0] == footprint.read_shape(module), name

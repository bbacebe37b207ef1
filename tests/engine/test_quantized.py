"""QLoRA: adapters on a base in 4 or 8 bits, against the same adapters on plain layers with the rounded weights."""

from __future__ import annotations

import asyncio
import warnings

import pytest
import tolerances
import torch

from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.sft import SFT
from aurify.engine.adapter_files import read_adapter
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.merge import merge_adapter
from aurify.engine.weights import share_weights
from aurify.errors import UserError
from aurify.models.loading import read_adapter_header, save_model
from aurify.models.model import ModelConfig, load_model, tiny_model
from aurify.models.quantized_linear import QuantizedLinear, dequantize_layers
from aurify.samplers.inprocess import InProcessSampler
from aurify.types import Datum, SamplingParams

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'aurify[quantize]'")
TEXTS = ["What is 3 + 4?", "What is 3 + 5?", "Name a colour of the sky.", "Ärger: 漢字 \n\t!"]
LORA = LoraConfig(rank=4, alpha=16)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks it


@pytest.fixture(scope="module", params=["nf4", "int8"])
def kind(request):
    return request.param


@pytest.fixture
def load(kind, dtype):
    return lambda name="random:tiny", **options: load_model(ModelConfig(name, dtype=dtype, quantize=kind), **options)


def plain(model):
    """The same model, its layers plain ones with the rounded weights."""
    dequantize_layers(model.module)
    model.quantized = None
    return model


def data_of(engine):
    rows = [[*engine.tokenizer.encode(text), engine.tokenizer.eos_token_id] for text in TEXTS]
    return [Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1), unit=k // 2) for k, tokens in enumerate(rows)]


def disturb(engine):
    """An adapter that changes what the model says."""
    for k, layer in enumerate(engine.adapter.layers.values()):
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=torch.Generator().manual_seed(k))
    engine.adapter.merge()
    return engine


def train(engine, steps, algorithm=None):
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward(data_of(engine), algorithm or SFT())["loss"])
        engine.optim_step(1e-2)
    return losses


def gradients(engine):
    engine.forward_backward(data_of(engine), SFT())
    return torch.cat([grad.reshape(-1) for grad in engine.optimizer.grads])


def largest_gap(found, expected):
    return max(abs(x - y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True))


def codes(engine):
    return [part.codes.clone() for part in engine.module.modules() if isinstance(part, QuantizedLinear)]


def test_logprobs_and_gradients_are_those_of_plain_layers(load, dtype):
    """In bf16 both take the same product, and agree to the bit; in fp32 plain layers are merged first."""
    quantized, other = disturb(Engine(load(), lora=LORA)), disturb(Engine(plain(load()), lora=LORA))
    assert not any(layer.merged is not None for layer in quantized.adapter.layers.values())
    found, expected = gradients(quantized), gradients(other)
    assert expected.norm() > 0.1
    if dtype == "bfloat16":
        assert quantized.logprobs(data_of(quantized)) == other.logprobs(data_of(other))
        assert torch.equal(found, expected)
    else:
        assert largest_gap(quantized.logprobs(data_of(quantized)), other.logprobs(data_of(other))) < 1e-5
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_backward_keeps_no_weight(load):
    """What forward saves is of the size of activations and adapters."""
    engine = Engine(load(), lora=LORA)
    layer = next(iter(engine.adapter.layers.values()))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        layer(torch.randn(3, 64, dtype=engine.dtype, requires_grad=True))
    assert saved and max(saved) < 64 * 64


def test_a_layer_without_adapter_gives_its_inputs_a_gradient(load):
    engine = Engine(load(), lora=LoraConfig(rank=4, targets=["q_proj"]))
    layer = engine.module.model.layers[0].mlp.down_proj
    assert type(layer) is QuantizedLinear
    x = torch.randn(2, 3, 128, dtype=engine.dtype, requires_grad=True)
    layer(x).sum().backward()
    expected = layer.weight.sum(0).expand(2, 3, 128)
    torch.testing.assert_close(x.grad, expected, atol=4 * tolerances.eps("bfloat16"), rtol=0)
    losses = train(engine, 6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_and_the_base_stays(load, checkpointing):
    engine = Engine(load(), lora=LORA, checkpointing=checkpointing)
    before, begun = codes(engine), engine.logprobs(data_of(engine))
    assert engine.logprobs(data_of(engine), reference=True) == begun, "a fresh adapter is its reference"
    losses = train(engine, 12)
    assert losses[-1] < losses[0] - 0.3
    assert engine.logprobs(data_of(engine), reference=True) == begun
    assert largest_gap(engine.logprobs(data_of(engine)), begun) > 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, codes(engine), strict=True))
    assert all(layer.lora_B.abs().max() > 0 for layer in engine.adapter.layers.values())


def test_recomputed_activations_give_the_same_gradients(load):
    found = [gradients(disturb(Engine(load(), lora=LORA, checkpointing=on))) for on in (True, False)]
    assert torch.equal(*found)


def test_packed_rows_pass_their_check(load):
    engine = disturb(Engine(load(), lora=LORA))
    assert engine.body.packs
    [check] = engine.body.checks
    assert check.accepted
    alone = disturb(Engine(load(), lora=LORA, packing=False))
    bound = tolerances.per_token(str(engine.dtype).removeprefix("torch."))
    assert largest_gap(engine.logprobs(data_of(engine)), alone.logprobs(data_of(alone))) < bound


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]])
def test_the_sampler_says_what_the_trainer_says(load, dtype, targets, caplog):
    """By the short step, and also where some layers have no adapter."""
    engine = disturb(Engine(load(), lora=LoraConfig(rank=4, targets=targets)))
    prompts = [list(datum.tokens[:6]) for datum in data_of(engine)]

    async def sample():
        sampler = InProcessSampler(engine, max_batch=3)
        try:
            params = SamplingParams(max_tokens=12, seed=1)
            return await asyncio.gather(*(sampler.sample(prompt, params, 2) for prompt in prompts))
        finally:
            await sampler.close()

    results = asyncio.run(sample())
    gaps = []
    for prompt, completions in zip(prompts, results, strict=True):
        for completion in completions:
            weights = [0.0] * len(prompt) + [1.0] * len(completion.tokens)
            [expected] = engine.logprobs([Datum(prompt + completion.tokens, weights)])
            gaps += [abs(x - y) for x, y in zip(completion.logprobs, expected[len(prompt) :], strict=True)]
    assert max(gaps) < tolerances.per_token(dtype)
    assert "slower" not in caplog.text


def test_resume_gives_the_same_bits(load, tmp_path):
    straight = Engine(load(), lora=LORA)
    losses = train(straight, 6)
    first = Engine(load(), lora=LORA)
    train(first, 3)
    first.save(tmp_path)
    resumed = Engine(load(), lora=LORA)
    resumed.load(tmp_path)
    assert train(resumed, 3) == losses[3:]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2e5, "adapters alone are saved, not the base"


def test_the_exported_adapter_is_loaded_by_us_and_by_peft_and_merges(load, kind, dtype, tmp_path):
    engine = Engine(load(), lora=LORA)
    train(engine, 4)
    engine.export(tmp_path / "out")
    expected, data = engine.logprobs(data_of(engine)), data_of(engine)
    assert read_adapter_header(tmp_path / "out")[1]["quantize"] == kind

    read = load_model(ModelConfig(str(tmp_path / "out"), dtype=dtype))
    assert read.quantized == kind, "as it was trained, though nobody said so"
    assert Engine(read, trainable=False).logprobs(data) == expected
    assert Engine(load(str(tmp_path / "out")), lora=LORA).logprobs(data) == expected

    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = Engine(load_model(ModelConfig(str(tmp_path / "merged"), dtype=dtype)), trainable=False)
    assert merged.quantized is None
    bound = 2 * tolerances.per_token(dtype)  # the merged weight is rounded once more
    assert largest_gap(merged.logprobs(data), expected) < bound
    unmerged = Engine(load(), lora=LORA).logprobs(data)
    assert largest_gap(unmerged, expected) > 2 * bound, "the adapter says something"

    peft = peft_or_skip()
    base = plain(load()).module
    module = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    for datum, values in zip(data, expected, strict=True):
        with torch.no_grad():
            theirs = module(torch.tensor([datum.tokens])).logits[0, :-1].float().log_softmax(-1)
        theirs = theirs.gather(1, torch.tensor(datum.tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(values[1:]), theirs, atol=bound, rtol=0)


def test_weights_have_the_names_and_values_of_the_merged_model(load):
    engine = disturb(Engine(load(), lora=LoraConfig(rank=4, targets=["q_proj", "down_proj"])))
    whole = disturb(Engine(plain(load()), lora=LoraConfig(rank=4, targets=["q_proj", "down_proj"])))
    ours, theirs = dict(engine.weights()), dict(whole.weights())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_reward_model_keeps_its_head_whole(load, kind, dtype, tmp_path):
    engine = Engine(load(scalar_head=True), lora=LORA)
    assert type(engine.score) is torch.nn.Linear and engine.score.weight.requires_grad
    losses = train(engine, 8, RewardModel())
    assert losses[-1] < losses[0]
    engine.export(tmp_path / "out")
    again = load_model(ModelConfig(str(tmp_path / "out"), dtype=dtype), scalar_head=True)
    assert Engine(again, trainable=False).scores(data_of(engine)) == engine.scores(data_of(engine))


def test_a_copy_for_the_reference_shares_the_codes(load):
    engine = Engine(load(scalar_head=True), lora=LORA)
    engine.keep_reference()
    held = engine.reference_body.module
    pairs = zip(engine.module.modules(), held.modules(), strict=True)
    shared = [a.codes.data_ptr() == b.codes.data_ptr() for a, b in pairs if isinstance(a, QuantizedLinear)]
    assert len(shared) == 14 and all(shared)
    assert share_weights(engine.module).score.weight is engine.score.weight


def test_dora_on_codes_is_dora_on_plain_layers(load, dtype, tmp_path):
    engine = disturb(Engine(load(), lora=LORA))
    engine.export(tmp_path / "out")
    saved = read_adapter(tmp_path / "out")
    for name, layer in engine.adapter.layers.items():
        norms = layer.base.weight.float().norm(dim=1)
        saved.tensors[f"{name}.lora_magnitude_vector"] = norms * torch.linspace(0.8, 1.2, len(norms))
    from aurify.engine.adapter_files import write_adapter

    (tmp_path / "dora").mkdir()
    write_adapter(tmp_path / "dora", saved.description | {"use_dora": True}, saved.tensors, {})
    dora = str(tmp_path / "dora")
    found, expected = Engine(load(dora), lora=LORA), Engine(plain(load(dora)), lora=LORA)
    assert found.logprobs(data_of(found)) == expected.logprobs(data_of(expected))
    assert largest_gap(found.logprobs(data_of(found)), engine.logprobs(data_of(engine))) > 1e-3


def test_what_cannot_be_is_refused_with_the_mend(load, kind, dtype, tmp_path):
    with pytest.raises(UserError, match=f"in {kind} and cannot be trained; add lora"):
        Engine(load())
    engine = Engine(load(), lora=LORA)
    engine.export(tmp_path / "out")
    other = "int8" if kind == "nf4" else "nf4"
    with pytest.raises(UserError, match=f"asks for {other}, but its adapter was trained on {kind}"):
        load_model(ModelConfig(str(tmp_path / "out"), quantize=other))
    with pytest.raises(UserError, match="cannot be trained; add lora"):
        Engine(load_model(ModelConfig(str(tmp_path / "out"), dtype=dtype)))
    sampler = InProcessSampler(Engine(load(), trainable=False))
    with pytest.raises(UserError, match="nothing new to write"):
        sampler.engine.export(tmp_path / "none")
    whole = Engine(plain(load()), trainable=False)
    with pytest.raises(UserError, match="is quantised; load them into a whole one"):
        asyncio.run(sampler.load_weights(whole.weights(), 1))


def test_layers_that_were_transposed_merge_into_what_they_were(kind, dtype, tmp_path):
    """GPT-2's Conv1D"""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4))
    save_model(made, tiny_model().tokenizer, tmp_path / "base")
    engine = Engine(load_model(ModelConfig(str(tmp_path / "base"), dtype=dtype, quantize=kind)), lora=LORA)
    train(engine, 4)
    engine.export(tmp_path / "out")
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    merged = Engine(load_model(ModelConfig(str(tmp_path / "merged"), dtype=dtype)), trainable=False)
    assert type(merged.module.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    data = data_of(engine)
    assert largest_gap(merged.logprobs(data), engine.logprobs(data)) < 2 * tolerances.per_token(dtype)


def peft_or_skip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason="peft is not installed: pip install 'aurify[bench]'")

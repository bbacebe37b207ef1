"""What the engine exports, plain transformers and peft load, and it says the same, in float32 and in bfloat16."""

from __future__ import annotations

import warnings

import pytest
import tolerances
import torch

from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.models.loading import cast_weights, save_model
from aurify.models.model import ModelConfig, load_model, tiny_model
from aurify.types import Datum

TEXTS = ["What is 3 + 4?", "Name a colour of the sky.", "Ärger: 漢字 \n\t!", "x"]
LORA = LoraConfig(rank=4, alpha=16)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks it


@pytest.fixture
def base(tmp_path, dtype):
    made = tiny_model(seed=1)
    save_model(cast_weights(made.module, getattr(torch, dtype)), made.tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def load(dtype):
    """A folder in the dtype of this test; plain transformers loads it in the dtype that it was saved in."""
    return lambda folder, **options: load_model(ModelConfig(str(folder), dtype=dtype), **options)


def data_of(tokenizer):
    """Sequences that end as the texts of a chat do."""
    rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in TEXTS]
    return [Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1), unit=k // 2) for k, tokens in enumerate(rows)]


def trained(engine, algorithm):
    data = data_of(engine.tokenizer)
    for _ in range(3):
        engine.forward_backward(data, algorithm)
        engine.optim_step(1e-2)
    return engine


def bound_of(engine):
    return tolerances.per_token(str(engine.module.dtype).removeprefix("torch."))


def check_logprobs(engine, module):
    """Against log_softmax over the whole logits, row by row."""
    data, bound = data_of(engine.tokenizer), bound_of(engine)
    for datum, values in zip(data, engine.logprobs(data), strict=True):
        with torch.no_grad():
            expected = module(torch.tensor([datum.tokens])).logits[0, :-1].float().log_softmax(-1)
        expected = expected.gather(1, torch.tensor(datum.tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(values[1:]), expected, atol=bound, rtol=0)


def check_scores(engine, module, tokenizer):
    """As a user would: one batch, padded by the exported tokenizer, on either side."""
    data = data_of(engine.tokenizer)
    expected = torch.tensor(engine.scores(data))
    assert expected.std() > 1e-3
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": [datum.tokens for datum in data]}, return_tensors="pt")
        with torch.no_grad():
            theirs = module(**batch).logits[:, 0].float()
        torch.testing.assert_close(theirs, expected, atol=bound_of(engine), rtol=0)


def test_full_fine_tuning(base, load, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = trained(Engine(load(base)), SFT())
    engine.export(tmp_path / "out")
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    check_logprobs(engine, module.eval())
    before = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(module.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == engine.tokenizer.chat_template
    check_logprobs(Engine(load(tmp_path / "out"), trainable=False), module)


def test_adapter_with_peft(base, load, tmp_path):
    peft = peft_or_skip()
    engine = trained(Engine(load(base), lora=LORA), SFT())
    engine.export(tmp_path / "out")
    module = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    check_logprobs(engine, module)
    check_logprobs(engine, module.merge_and_unload())
    check_logprobs(Engine(load(tmp_path / "out"), lora=LORA, trainable=False), module)
    check_logprobs(Engine(load(tmp_path / "out"), trainable=False), module)  # merged for good


def test_adapter_from_peft(base, load, tmp_path):
    """The other way: what peft saved, the engine goes on with."""
    peft = peft_or_skip()
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    module = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    module.save_pretrained(tmp_path / "peft")
    check_logprobs(Engine(load(tmp_path / "peft"), lora=LORA, trainable=False), module)


def test_reward_model(base, load, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    engine = trained(Engine(load(base, scalar_head=True)), RewardModel())
    engine.export(tmp_path / "out")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    check_scores(engine, module, AutoTokenizer.from_pretrained(tmp_path / "out"))
    again = Engine(load(tmp_path / "out", scalar_head=True), trainable=False)
    assert again.scores(data_of(engine.tokenizer)) == engine.scores(data_of(engine.tokenizer))


def test_reward_adapter_with_peft(base, load, tmp_path):
    """The base alone does not know which token pads: its configuration takes it from the exported tokenizer."""
    peft = peft_or_skip()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    engine = trained(Engine(load(base, scalar_head=True), lora=LORA), RewardModel())
    engine.export(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    module = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    check_scores(engine, module, tokenizer)


def peft_or_skip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason="peft is not installed: pip install 'aurify[bench]'")

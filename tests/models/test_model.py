"""Models by every kind of name; what is saved is what was loaded; each broken folder is an error with its mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from models import random_model
from safetensors.torch import load_file, save_file

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.hardware import choose_device
from aurify.models import catalog, names
from aurify.models.loading import save_model
from aurify.models.model import ModelConfig, load_model, load_skeleton, load_tokenizer, tiny_model
from aurify.models.names import resolve_model

sys.path.insert(0, str(Path(__file__).parent))
from gguf_file import write_gguf

IDS = torch.randint(0, 250, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    loaded = tiny_model(seed=1)
    save_model(loaded.module, loaded.tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and an empty cache of its client."""
    import huggingface_hub.constants

    monkeypatch.setattr(names, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def logits(module):
    with torch.no_grad():
        return module(IDS).logits


def load_fp32(name: object, **options):
    """For comparisons bit for bit with a model made in fp32, on a machine whose `auto` is bf16 as well."""
    return load_model(ModelConfig(str(name), dtype="float32"), **options)


def write_adapter(folder: Path, base: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    return folder


# ------------------------------------------------------------------ random:tiny


def test_tiny_model_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    first, _, second = tiny_model(seed=1), torch.rand(3), tiny_model(seed=1)
    assert torch.equal(logits(first.module), logits(second.module))
    assert not torch.equal(logits(first.module), logits(tiny_model(seed=2).module))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(drawn, torch.rand(1))


def test_byte_tokenizer_knows_every_text_and_its_template_ends_turns():
    tokenizer = load_tokenizer("random:tiny")
    text = "<|im_start|>Größe\t3 x 4 = 12 \n\n 漢字 🙂<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [tokenizer.pad_token_id]
    assert max(tokenizer.get_vocab().values()) < tiny_model().module.config.vocab_size


# ------------------------------------------------------------------ folders


@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_gives_the_same_logits_with_plain_transformers(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = random_model("Qwen2", tie_word_embeddings=tied)
    folder = tmp_path / "a" / "model"
    save_model(made.module, made.tokenizer, folder)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied

    plain, loaded = AutoModelForCausalLM.from_pretrained(folder), load_fp32(folder)
    assert torch.equal(logits(plain), logits(made.module))
    assert torch.equal(logits(loaded.module), logits(made.module))
    assert AutoTokenizer.from_pretrained(folder).chat_template == made.tokenizer.chat_template
    head, embedding = loaded.module.lm_head.weight, loaded.module.model.embed_tokens.weight
    assert (head.data_ptr() == embedding.data_ptr()) is tied
    assert (loaded.name, loaded.adapter) == (str(folder), None)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(folder):
    (folder / "old.txt").write_text("of the last save")
    second = tiny_model(seed=2)
    save_model(second.module, second.tokenizer, folder)
    assert torch.equal(logits(load_fp32(folder).module), logits(second.module))
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert not (folder / "old.txt").exists()


def test_a_temperature_without_do_sample_can_be_saved(tmp_path):
    made = tiny_model()
    made.module.generation_config.temperature = 0.6
    save_model(made.module, made.tokenizer, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["temperature"] == 0.6


def test_missing_padding_token_becomes_the_end_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"names no end token.*tokenizer_config\.json"):
        load_tokenizer(str(folder))


def drop_weights(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def change_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


BROKEN = {
    "no weights file": (lambda f: (f / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "half a weights file": (lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0"), "cannot be loaded"),
    "some weights": (drop_weights, r"9 weights of LlamaForCausalLM are not in its files, such as 'model\.layers\.1"),
    "other sizes": (change_sizes, r"has shape \[.*128.*\], config\.json asks for \[.*96"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json \(it holds .*give the folder of a saved"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_errors_that_name_the_folder(folder, kind):
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        load_model(str(folder))
    assert str(folder) in str(raised.value)


# ------------------------------------------------------------------ GGUF


def test_gguf_file_gives_the_same_logits_and_can_be_saved(tmp_path, capfd):
    made = tiny_model(seed=3, vocab_size=260)
    write_gguf(made.module, made.tokenizer, tmp_path / "tiny.gguf")
    loaded = load_fp32(tmp_path / "tiny.gguf")
    assert "de-quantizing" not in capfd.readouterr().err, "a bar of transformers that has no switch"
    assert torch.equal(logits(loaded.module), logits(made.module))
    assert loaded.tokenizer.encode("x\n<|im_end|>é") == made.tokenizer.encode("x\n<|im_end|>é")
    assert loaded.tokenizer.chat_template == made.tokenizer.chat_template

    save_model(loaded.module, loaded.tokenizer, tmp_path / "saved")
    assert torch.equal(logits(load_fp32(tmp_path / "saved").module), logits(made.module))

    reward = load_fp32(tmp_path / "tiny.gguf", scalar_head=True)
    assert torch.equal(reward.module.model.layers[1].mlp.up_proj.weight, made.module.model.layers[1].mlp.up_proj.weight)
    assert reward.module.score.weight.shape == (1, 64)


def test_missing_gguf_file_names_its_neighbour(tmp_path):
    (tmp_path / "model.q4.gguf").touch()
    with pytest.raises(UserError, match=r"no such GGUF file; did you mean .*model\.q4\.gguf"):
        load_model(str(tmp_path / "model.q8.gguf"))


# ------------------------------------------------------------------ reward models


def test_scalar_head_on_a_language_model_is_small_seeded_and_can_be_saved(folder, tmp_path):
    first, again, other = (load_fp32(folder, scalar_head=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.module.score.weight, again.module.score.weight)
    assert not torch.equal(first.module.score.weight, other.module.score.weight)
    assert 0 < first.module.score.weight.abs().max() < 0.1
    assert first.module.score.weight.dtype == torch.float32
    assert torch.equal(first.module.model.embed_tokens.weight, tiny_model(seed=1).module.model.embed_tokens.weight)

    save_model(first.module, first.tokenizer, tmp_path / "reward")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    assert plain.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id  # else it scores another token
    assert torch.equal(logits(plain), logits(first.module)) and plain(IDS).logits.shape == (2, 1)
    reloaded = load_fp32(tmp_path / "reward", scalar_head=True, seed=9)
    assert torch.equal(reloaded.module.score.weight, first.module.score.weight)


@pytest.mark.parametrize("name", [None, "random:tiny"])
def test_a_reward_model_has_one_dtype_and_fp32_rotary_frequencies(folder, name, tmp_path):
    """So that plain transformers runs it, in memory and from its folder, and says the same."""
    from transformers import AutoModelForSequenceClassification

    loaded = load_model(ModelConfig(name or str(folder), dtype="bfloat16"), scalar_head=True)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.bfloat16}
    assert loaded.module.model.rotary_emb.inv_freq.dtype == torch.float32
    save_model(loaded.module, loaded.tokenizer, tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert plain.dtype == torch.bfloat16 and torch.equal(logits(plain), logits(loaded.module))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_gives_back_what_was_saved_in_its_dtype(tmp_path, dtype):
    made = load_model(ModelConfig("random:tiny", dtype=dtype))
    save_model(made.module, made.tokenizer, tmp_path / "model")
    again = load_model(ModelConfig(str(tmp_path / "model"), dtype=dtype))
    assert again.module.dtype == getattr(torch, dtype) and torch.equal(logits(again.module), logits(made.module))


def test_reward_model_is_no_language_model(tmp_path):
    made = random_model("Qwen2", scalar_head=True, tie_word_embeddings=False)
    save_model(made.module, made.tokenizer, tmp_path / "reward")
    with pytest.raises(UserError, match=r"lm_head\.weight.*reward model is no language model"):
        load_model(str(tmp_path / "reward"))


# ------------------------------------------------------------------ adapters


@pytest.mark.parametrize("scalar_head", [False, True])
def test_adapter_folder_leads_to_its_base(folder, tmp_path, scalar_head):
    adapter = write_adapter(tmp_path / "adapter", str(folder))
    loaded = load_model(str(adapter), scalar_head=scalar_head)
    assert (loaded.name, loaded.adapter) == (str(folder), adapter)
    assert loaded.module.training is False
    assert hasattr(loaded.module, "score") is scalar_head
    assert loaded.tokenizer.chat_template == tiny_model().tokenizer.chat_template


def test_adapter_of_another_machine_finds_its_base_in_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "fetch_known_model", lambda known: tmp_path / "cache" / known.name)
    adapter = write_adapter(tmp_path / "adapter", "/somewhere/else/models/smollm2-135m-instruct")
    found = resolve_model(str(adapter))
    assert found.source == str(tmp_path / "cache" / "smollm2-135m-instruct")
    assert found.base == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/nowhere/base", "neither a folder"),
        (None, "names none; write its base_model_name_or_path"),
        ("ADAPTER", "is an adapter too; merge"),
    ],
)
def test_adapters_without_a_usable_base_are_errors(folder, tmp_path, base, message):
    other = write_adapter(tmp_path / "other", str(folder))
    adapter = write_adapter(tmp_path / "adapter", str(other) if base == "ADAPTER" else base)
    with pytest.raises(UserError, match=message) as raised:
        load_model(str(adapter))
    assert str(adapter) in str(raised.value)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'"),
        ("random:tny", "did you mean 'random:tiny'"),
        ("xyz", "neither a folder, a GGUF file, a catalogue name nor a hub id"),
    ],
)
def test_unknown_names_are_errors_with_a_guess(name, hint):
    with pytest.raises(UserError, match=hint):
        load_model(name)


def test_unknown_folder_names_its_neighbour(folder):
    with pytest.raises(UserError, match=f"did you mean '{folder}'"):
        load_model(str(folder.parent / "modle"))


def test_hub_id_without_a_hub_comes_from_the_catalogue_or_is_an_error(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "fetch_known_model", lambda known: tmp_path / known.name)
    assert resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct").source == str(tmp_path / "smollm2-135m-instruct")
    with pytest.raises(UserError, match=r"hub does not answer.*give its folder.*smollm2-135m-instruct"):
        resolve_model("owner/other")


def test_hub_id_without_a_hub_comes_from_the_hub_cache_if_it_is_there(offline, folder):
    snapshot = offline / "models--owner--tiny" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (offline / "models--owner--tiny" / "refs").mkdir()
    (offline / "models--owner--tiny" / "refs" / "main").write_text("0123")
    loaded = load_fp32("owner/tiny")
    assert loaded.name == "owner/tiny"
    assert torch.equal(logits(loaded.module), logits(tiny_model(seed=1).module))


def test_the_hub_is_not_asked_in_offline_mode(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("asked the hub"))
    names.hub_answers.cache_clear()
    assert names.hub_answers() is False
    names.hub_answers.cache_clear()


# ------------------------------------------------------------------ dtype and device


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"model\.device.*no GPU"):
        load_model(ModelConfig("random:tiny", device="cuda"))


def with_rows(folder, num_rows):
    """The folder with an embedding of so many rows for its 259 tokens."""
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": num_rows}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights = {k: v[:num_rows].clone() if "embed" in k or "lm_head" in k else v for k, v in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_vocabulary_beyond_the_embedding_is_refused_at_loading(folder):
    """It made a run wait for ever at its first prompt with such a token."""
    with pytest.raises(UserError, match=r"its tokenizer has 9 tokens without an embedding, such as .* \(250\)"):
        load_model(with_rows(folder, 250))


@pytest.mark.parametrize(("written", "refused"), [(False, False), (True, True)])
def test_added_tokens_beyond_the_embedding_are_a_warning_where_nothing_writes_them(folder, written, refused, caplog):
    """Such as an image's place in a tokenizer that several models share."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    if written:
        tokenizer.chat_template = "<|image|>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    if refused:
        with pytest.raises(UserError, match=r"1 tokens without an embedding, such as '<\|image\|>' \(259\)"):
            load_model(str(folder))
    else:
        load_model(str(folder))
        assert "added tokens without an embedding: <|image|>" in caplog.text


# ------------------------------------------------------------------ dtype, resizing, and what adapters name as base


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_and_device_can_be_given_beside_a_name(dtype, monkeypatch):
    monkeypatch.setenv("AURIFY_DTYPE", "float32")
    assert load_model("random:tiny", dtype=dtype, device="cpu").module.dtype == torch.bfloat16
    assert load_model("random:tiny").module.dtype == torch.float32
    with pytest.raises(UserError, match=r"model\.dtype: 'float8' is not known; give float32, bfloat16 or auto"):
        load_model("random:tiny", dtype="float8")


def with_added_token(folder: Path) -> str:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    tokenizer.chat_template = "<|call|>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_rows_if_the_recipe_says_so(tmp_path, tied):
    made = random_model("Qwen2", tie_word_embeddings=tied, vocab_size=259)
    save_model(made.module, made.tokenizer, tmp_path / "model")
    name = with_added_token(tmp_path / "model")
    with pytest.raises(UserError, match=r"model\.resize_embeddings: true"):
        load_model(name)
    loaded = load_model(ModelConfig(name, dtype="float32", resize_embeddings=True))
    assert loaded.num_new_rows == 1 and loaded.module.config.vocab_size == 260
    for before, after in ((made.module.get_input_embeddings(), loaded.module.get_input_embeddings()),
                          (made.module.lm_head, loaded.module.lm_head)):  # fmt: skip
        assert torch.equal(after.weight[:259], before.weight)
        torch.testing.assert_close(after.weight[259], before.weight.mean(0))
    assert (loaded.module.lm_head.weight is loaded.module.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_the_rows_of_added_tokens_and_takes_them_along(tmp_path, tied):
    from aurify.algorithms.sft import SFT
    from aurify.engine.engine import Engine
    from aurify.engine.lora import LoraConfig
    from aurify.types import Datum

    made = random_model("Qwen2", tie_word_embeddings=tied, vocab_size=259)
    save_model(made.module, made.tokenizer, tmp_path / "model")
    config = ModelConfig(with_added_token(tmp_path / "model"), dtype="float32", resize_embeddings=True)
    engine = Engine(load_model(config), lora=LoraConfig(rank=2))
    first = engine.module.get_input_embeddings().weight.detach().clone()
    data = [Datum([5, 259, 7, 259, 9], [0.0, 1.0, 1.0, 1.0, 1.0])]
    for _ in range(3):
        engine.forward_backward(data, SFT())
        engine.optim_step(1e-2)
    moved = (engine.module.get_input_embeddings().weight != first).any(1).nonzero().flatten().tolist()
    assert moved == [259], "the new row alone"
    engine.export(tmp_path / "adapter")
    again = Engine(load_fp32(tmp_path / "adapter"), lora=LoraConfig(rank=2))  # the folder says that it has the row
    for ours, theirs in zip(engine.logprobs(data)[0], again.logprobs(data)[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    again.forward_backward(data, SFT())
    again.optim_step(1e-2)
    assert not torch.equal(
        again.module.get_input_embeddings().weight[259], engine.module.get_input_embeddings().weight[259]
    )

    peft = pytest.importorskip("peft")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    expected = module(torch.tensor([data[0].tokens])).logits[0, :-1].log_softmax(-1)
    found = [float(row[token]) for row, token in zip(expected, data[0].tokens[1:], strict=True)]
    assert engine.logprobs(data)[0][1:] == pytest.approx(found, abs=1e-5)


def export_adapter(loaded, folder: Path) -> dict:
    from aurify.engine.engine import Engine
    from aurify.engine.lora import LoraConfig

    Engine(loaded, lora=LoraConfig(rank=2)).export(folder)
    return json.loads((folder / "adapter_config.json").read_text())


def test_an_adapter_names_the_hub_id_of_its_base(folder, tmp_path, monkeypatch):
    """Not a path of a cache, which nobody else has; and it finds the weights that it was trained on."""
    known = catalog.KNOWN["smollm2-135m-instruct"]
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path / "cache"))
    cached = catalog.cached_model_folder(known)
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    monkeypatch.setattr(names, "hub_answers", lambda: pytest.fail("the hub has other weights"))
    for number, name in enumerate((known.name, str(cached))):
        adapter = tmp_path / f"adapter{number}"
        assert export_adapter(load_model(name), adapter)["base_model_name_or_path"] == known.hub_id
        found = resolve_model(str(adapter))
        assert (found.base, found.source, found.adapter) == (known.hub_id, str(cached), adapter)

    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    cached.rename(snapshot)
    assert export_adapter(load_model(str(snapshot)), tmp_path / "last")["base_model_name_or_path"] == "owner/tiny"


def test_a_hub_id_may_have_no_owner(offline, folder, monkeypatch):
    """Such as gpt2. Without a hub, one that is not in the cache is taken for a typing error."""
    snapshot = offline / "models--gpt2" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (offline / "models--gpt2" / "refs").mkdir()
    (offline / "models--gpt2" / "refs" / "main").write_text("0123")
    loaded = load_fp32("gpt2")
    assert loaded.name == "gpt2" and torch.equal(logits(loaded.module), logits(tiny_model(seed=1).module))
    with pytest.raises(UserError, match=r"'distilgpt2' is neither .* and the model hub does not answer"):
        resolve_model("distilgpt2")


def test_a_hub_that_answers_is_asked_for_ids_without_owner(monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(names, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, *rest, **options: asked.append(name))
    assert resolve_model("gpt2").source == "gpt2" and asked == ["gpt2"]


# ------------------------------------------------------------------ without the weights


@pytest.mark.parametrize("kind", ["folder", "gguf", "adapter", "added token", "reward model", "random:tiny"])
def test_a_skeleton_is_the_model_without_its_weights(kind, folder, tmp_path):
    name, options, scalar_head = str(folder), {}, kind == "reward model"
    if kind == "gguf":
        made = tiny_model(vocab_size=260)
        write_gguf(made.module, made.tokenizer, tmp_path / "tiny.gguf")
        name = str(tmp_path / "tiny.gguf")
    elif kind == "adapter":
        engine = Engine(load_model(name, dtype="float32"), lora=LoraConfig(4))
        engine.export(tmp_path / "adapter")
        name = str(tmp_path / "adapter")
    elif kind == "added token":
        name, options = with_added_token(folder), {"resize_embeddings": True}
    elif kind == "random:tiny":
        name = kind
    config = ModelConfig(name, "float32", **options)
    real, empty = load_model(config, scalar_head=scalar_head), load_skeleton(config, scalar_head=scalar_head)
    shapes = [{name: tuple(p.shape) for name, p in each.module.named_parameters()} for each in (real, empty)]
    assert shapes[0] == shapes[1] and type(real.module) is type(empty.module)
    assert (real.max_context, real.vocabulary) == (empty.max_context, empty.vocabulary)
    assert (real.name, real.adapter, real.num_new_rows) == (empty.name, empty.adapter, empty.num_new_rows)
    assert real.tokenizer.get_vocab() == empty.tokenizer.get_vocab()
    assert kind == "random:tiny" or all(parameter.is_meta for parameter in empty.module.parameters())

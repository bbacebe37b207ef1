"""Adapters that people have: made by peft, loaded, trained on, saved and merged here, and the same numbers each time.

Each row of KINDS is a kind of adapter. `python tests/parity/test_adapters.py` prints the table of differences."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import ATTENTIVE, random_model
from safetensors.torch import load_file, save_file

from aurify.algorithms.dpo import DPO
from aurify.algorithms.sft import SFT
from aurify.engine.adapter_files import read_adapter
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.merge import merge_adapter
from aurify.errors import UserError
from aurify.models.loading import save_model
from aurify.models.model import load_model
from aurify.types import Datum

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'aurify[bench]'")
pytestmark = pytest.mark.filterwarnings("ignore")
RANK, ALPHA = 4, 12.0
PARITY = 1e-5  # of a token's log-prob
TEXTS = ["What is 3 + 4?", "Name a colour of the sky.", "Ärger: 漢字 \n\t!", "yes"]


@dataclass(frozen=True)
class Kind:
    options: dict[str, Any]
    tied: bool = True
    architecture: str = "Qwen2"
    seen: set[str] = field(default_factory=set)  # what the names of its tensors end in, beside the usual


Q = ["q_proj", "v_proj"]
KINDS = {
    "all-linear": Kind({"target_modules": "all-linear"}),
    "last parts of names": Kind({"target_modules": Q}),
    "full names": Kind({"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]}),
    "partial names": Kind({"target_modules": ["self_attn.q_proj", "mlp.down_proj"]}),
    "regular expression": Kind({"target_modules": r".*layers\.1\..*(q|k)_proj"}),
    "layers_to_transform": Kind({"target_modules": Q, "layers_to_transform": [1]}),
    "exclude_modules": Kind({"target_modules": "all-linear", "exclude_modules": r".*mlp.*"}),
    "rsLoRA": Kind({"target_modules": Q, "use_rslora": True}),
    "DoRA": Kind({"target_modules": "all-linear", "use_dora": True}, seen={"lora_magnitude_vector"}),
    "rank_pattern and alpha_pattern": Kind(
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
            "alpha_pattern": {"v_proj": 3, r"layers\.0.*gate_proj": 40},
            "use_rslora": True,
        }
    ),
    "modules_to_save: norms": Kind({"target_modules": Q, "modules_to_save": ["norm"]}, seen={"norm.weight"}),
    "modules_to_save: head and embedding, tied": Kind(
        {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}, seen={"lm_head.weight"}
    ),
    "modules_to_save: embedding, tied": Kind(
        {"target_modules": Q, "modules_to_save": ["embed_tokens"]}, seen={"embed_tokens.weight"}
    ),
    "modules_to_save: head, untied": Kind(
        {"target_modules": Q, "modules_to_save": ["lm_head"]}, tied=False, seen={"lm_head.weight"}
    ),
    "embedding": Kind({"target_modules": [*Q, "embed_tokens"]}, seen={"lora_embedding_A"}),
    "head": Kind({"target_modules": [*Q, "lm_head"]}, seen={"lm_head.lora_A.weight"}),
    "head and embedding, untied": Kind({"target_modules": [*Q, "lm_head", "embed_tokens"]}, tied=False),
    "trainable tokens": Kind(
        {"target_modules": Q, "trainable_token_indices": [57, 74, 2]}, seen={"token_adapter.trainable_tokens_delta"}
    ),
    "trainable tokens, untied": Kind(
        {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [57, 74], "lm_head": [66]}}, tied=False
    ),
    "bias: lora_only": Kind({"target_modules": Q, "bias": "lora_only"}, seen={"q_proj.base_layer.bias"}),
    "bias: all": Kind({"target_modules": Q, "bias": "all"}, seen={"k_proj.bias"}),
    "Conv1D": Kind({"target_modules": "all-linear"}, architecture="GPT2"),
    "gaussian start": Kind({"target_modules": Q, "init_lora_weights": "gaussian"}),
    "old .bin file": Kind({"target_modules": Q}),
    "layers_pattern": Kind({"target_modules": Q, "layers_to_transform": [0], "layers_pattern": "layers"}),
    "patterns with anchors": Kind(
        {
            "target_modules": "all-linear",
            "rank_pattern": {r".*layers\.0\..*": 3, "^model.layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {r".*layers\.0\..*": 7, "^model.layers.1.self_attn.q_proj": 9},
        }
    ),
    "DoRA on Conv1D": Kind(
        {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}, architecture="GPT2"
    ),
    "DoRA, rsLoRA and bias": Kind({"target_modules": Q, "use_dora": True, "use_rslora": True, "bias": "all"}),
    "modules_to_save: a whole block": Kind({"target_modules": Q, "modules_to_save": ["mlp"]}, seen={"up_proj.weight"}),
    "positions of GPT-2": Kind({"target_modules": ["wpe", "c_attn"]}, architecture="GPT2"),
    "trainable tokens, tied by peft": Kind(
        {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [57, 74]}, "ensure_weight_tying": True}
    ),
    "orthogonal start": Kind({"target_modules": Q, "init_lora_weights": "orthogonal"}),
    "experts": Kind({"target_modules": "all-linear"}, architecture="Qwen2Moe"),
}
REFUSED = {
    "IA3": (peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), "peft_type IA3"),
    "PiSSA": (peft.LoraConfig(r=RANK, target_modules=Q, init_lora_weights="pissa"), "'pissa', which changes the base"),
    "lora_bias": (peft.LoraConfig(r=RANK, target_modules=Q, lora_bias=True), "'lora_bias' is not supported"),
    "DoRA on the embedding": (
        peft.LoraConfig(r=RANK, target_modules=["embed_tokens"], use_dora=True),
        "'use_dora' on model.embed_tokens",
    ),
    **{
        name: (config(target_modules=Q, r=RANK), f"peft_type {name.upper()}")
        for name, config in {"VeRA": peft.VeraConfig, "LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}.items()
    },
    "OLoRA": (peft.LoraConfig(r=RANK, target_modules=Q, init_lora_weights="olora"), "'olora', which changes the base"),
    "target_parameters": (
        peft.LoraConfig(r=RANK, target_modules=[], target_parameters=["mlp.up_proj.weight"], init_lora_weights=False),
        "'target_parameters' is not supported",
    ),
    "trainable tokens alone": (
        peft.TrainableTokensConfig(token_indices=[57, 74], target_modules=["embed_tokens"]),
        "peft_type TRAINABLE_TOKENS",
    ),
    "weights tied by peft": (
        peft.LoraConfig(r=RANK, target_modules=Q, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        "'ensure_weight_tying' with lm_head",
    ),
    "AdaLoRA": (
        peft.AdaLoraConfig(init_r=RANK, target_modules=Q, total_step=10, tinit=1, tfinal=1),
        "peft_type ADALORA",
    ),
}


def save_base(folder: Path, tied: bool = True, architecture: str = "Qwen2") -> Path:
    if architecture == "GPT2":
        made = random_model()
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1)
        made.module = transformers.GPT2LMHeadModel(config).eval()
    else:
        made = random_model(architecture, tie_word_embeddings=tied, **ATTENTIVE)
    save_model(made.module, made.tokenizer, folder)
    return folder


def save_adapter(base: Path, folder: Path, config: Any) -> Any:
    """An adapter by peft on the base, with every trained weight away from where it began."""
    torch.manual_seed(0)
    module = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                spread = 0.2 * (parameter.std() if "lora_B" not in name else 1) + 0.02
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    module.save_pretrained(folder)
    return module


def make_kind(kind: Kind, folder: Path, name: str = "") -> tuple[Path, Any]:
    base = save_base(folder / "base", kind.tied, kind.architecture)
    options = {"init_lora_weights": False, **kind.options}
    module = save_adapter(base, folder / "adapter", peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **options))
    if "bin" in name:
        file = folder / "adapter" / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    return folder / "adapter", module


def make_data(tokenizer: Any) -> list[Datum]:
    rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in TEXTS]
    return [Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1), unit=k // 2) for k, tokens in enumerate(rows)]


@torch.no_grad()
def find_gap(engine: Engine, module: Any) -> float:
    """The largest difference of a token's log-prob between the engine and plain transformers or peft."""
    data, gaps = make_data(engine.tokenizer), []
    for datum, ours in zip(data, engine.logprobs(data), strict=True):
        values = module(torch.tensor([datum.tokens])).logits[0, :-1].float().log_softmax(-1)
        theirs = values.gather(1, torch.tensor(datum.tokens[1:])[:, None])[:, 0]
        gaps.append(float((theirs - torch.tensor(ours[1:])).abs().max()))
    return max(gaps)


def load(folder: Path, **options: Any) -> Engine:
    return Engine(load_model(str(folder), dtype="float32"), **options)


def train(engine: Engine, steps: int = 3) -> Engine:
    for _ in range(steps):
        engine.forward_backward(make_data(engine.tokenizer), SFT())
        engine.optim_step(1e-2)
    return engine


def reload_with_peft(folder: Path) -> Any:
    return peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_loaded_trained_on_saved_and_merged(name, tmp_path):
    kind = KINDS[name]
    adapter, theirs = make_kind(kind, tmp_path, name)
    if "bin" not in name:
        names = load_file(adapter / "adapter_model.safetensors")
        assert all(any(key.endswith(end) for key in names) for end in kind.seen), "peft made what this row is about"
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert find_gap(load(tmp_path / "base", trainable=False), base) < PARITY
    assert find_gap(load(adapter, trainable=False), base) > 0.05, "the adapter says something else"

    assert find_gap(load(adapter, trainable=False), theirs) < PARITY  # merged for good
    engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
    assert find_gap(engine, theirs) < PARITY
    before = engine.logprobs(make_data(engine.tokenizer))
    train(engine)
    assert engine.logprobs(make_data(engine.tokenizer)) != before

    (tmp_path / "saved").mkdir()
    engine.export(tmp_path / "saved")
    again = reload_with_peft(tmp_path / "saved")
    assert find_gap(engine, again) < PARITY
    assert find_gap(load(tmp_path / "saved", lora=LoraConfig(RANK, ALPHA)), again) < PARITY
    merge_adapter(tmp_path / "saved", tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert find_gap(engine, plain) < PARITY
    assert find_gap(load(tmp_path / "merged", trainable=False), plain) < PARITY


@pytest.mark.parametrize("name", KINDS)
def test_training_on_moves_what_the_adapter_trains_and_nothing_else(name, tmp_path):
    adapter, theirs = make_kind(KINDS[name], tmp_path, name)
    engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
    num = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert sum(master.numel() for master in engine.optimizer.masters) == num, "as many as peft trains"
    held = {key: value.detach().clone() for key, value in engine.module.named_parameters()}
    train(engine)
    options = KINDS[name].options
    for key, value in engine.module.named_parameters():
        changed = not torch.equal(value, held[key])
        assert changed == value.requires_grad, key
        if value.requires_grad and ".lora_" not in key and "trainable_token_indices" in options:
            rows = (value != held[key]).any(1).nonzero().flatten().tolist()
            assert rows in ([2, 57, 74], [57, 74], [66])


MOVED = ("all-linear", "DoRA", "bias: all", "modules_to_save: embedding, tied", "embedding", "head", "trainable tokens")


@pytest.mark.parametrize("name", MOVED)
def test_the_reference_is_the_adapter_as_it_was_loaded(name, tmp_path):
    """Also where training changes weights that switching the adapter off would not bring back."""
    adapter, theirs = make_kind(KINDS[name], tmp_path, name)
    engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
    engine.keep_reference()
    data = make_data(engine.tokenizer)
    first = engine.logprobs(data)
    assert engine.logprobs(data, reference=True) == first
    train(engine)
    assert engine.logprobs(data, reference=True) == first != engine.logprobs(data)
    engine.save(tmp_path / "state")
    resumed = load(adapter, lora=LoraConfig(RANK, ALPHA))
    resumed.keep_reference()
    resumed.load(tmp_path / "state")
    assert resumed.logprobs(data, reference=True) == first
    assert resumed.logprobs(data) == engine.logprobs(data)
    assert find_gap(engine, theirs) > 0.01


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_with_the_command_that_merges_them(name, tmp_path):
    from typer.testing import CliRunner

    from aurify.cli.main import app

    config, message = REFUSED[name]
    base = save_base(tmp_path / "base")
    theirs = save_adapter(base, tmp_path / "adapter", config)
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path / "adapter", trainable=False)
    command = str(refused.value).partition("with: aurify ")[2].split()
    assert command == ["merge", str(tmp_path / "adapter"), "adapter-merged"]
    result = CliRunner().invoke(app, [*command[:2], str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert find_gap(load(tmp_path / "merged", trainable=False), theirs.eval()) < PARITY


UNMERGED = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "PiSSA at random": peft.LoraConfig(r=RANK, target_modules=Q, init_lora_weights="pissa_niter_4"),
    "replicated layers": peft.LoraConfig(r=RANK, target_modules=Q, layer_replication=[[0, 2], [1, 2]]),
}


@pytest.mark.parametrize("name", UNMERGED)
def test_what_nobody_can_merge_is_refused_without_a_command(name, tmp_path):
    save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter", UNMERGED[name])
    for refuse in (
        lambda: load(tmp_path / "adapter", trainable=False),
        lambda: merge_adapter(tmp_path / "adapter", tmp_path / "merged"),
    ):
        with pytest.raises(UserError, match=r"is not supported; it cannot be merged either, for it .*: (train|save)"):
            refuse()
    assert not (tmp_path / "merged").exists()


def test_what_peft_merges_wrongly_is_refused(tmp_path):
    """It adds the changes of the embedding and of the head to the one weight that both share."""
    config = peft.LoraConfig(r=RANK, target_modules=["embed_tokens"], ensure_weight_tying=True, init_lora_weights=False)
    save_adapter(save_base(tmp_path / "base"), tmp_path / "adapter", config)
    with pytest.raises(UserError, match="peft cannot merge this adapter either: it adds the change of a shared weight"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


def edit_keys(adapter: Path, old: str, new: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(file).items()}, file)


def edit_config(adapter: Path, drop: tuple[str, ...] = (), **values: Any) -> None:
    file = adapter / "adapter_config.json"
    description = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop}
    file.write_text(json.dumps(description | values))


def test_folders_that_other_programs_wrote(tmp_path):
    """Keys with the adapter's name or without peft's prefix, and the few options that peft knew at first."""
    adapter, theirs = make_kind(KINDS["last parts of names"], tmp_path)
    few = ("base_model_name_or_path", "bias", "lora_alpha", "peft_type", "r", "target_modules")
    known = json.loads((adapter / "adapter_config.json").read_text())
    edit_keys(adapter, "lora_A.weight", "lora_A.default.weight")
    edit_keys(adapter, "base_model.model.", "")
    edit_config(adapter, tuple(name for name in known if name not in few), merge_weights=True, newer=None)
    engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
    assert find_gap(engine, theirs) < PARITY
    train(engine)
    (tmp_path / "saved").mkdir()
    engine.export(tmp_path / "saved")
    assert find_gap(engine, reload_with_peft(tmp_path / "saved")) < PARITY
    edit_config(adapter, ("lora_alpha", "r"))
    load(adapter, lora=LoraConfig(8, 8.0))


def test_damaged_folders_are_named(tmp_path):
    adapter, _ = make_kind(KINDS["last parts of names"], tmp_path)
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    for content in (whole[:200], b"version https://git-lfs.github.com/spec/v1\n"):
        (adapter / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged, or only a pointer of Git LFS"):
            load(adapter, trainable=False)
    (adapter / "adapter_model.safetensors").write_bytes(whole)
    edit_keys(adapter, "q_proj", "wq")
    with pytest.raises(UserError, match="belongs to another base model"):
        merge_adapter(adapter, tmp_path / "merged")  # peft would only warn, and save the base
    edit_config(adapter, base_model_name_or_path=None)
    with pytest.raises(UserError, match="write its base_model_name_or_path"):
        load(adapter, trainable=False)


def test_rank_alpha_and_targets_of_the_recipe_are_those_of_the_adapter(tmp_path):
    adapter, _ = make_kind(KINDS["last parts of names"], tmp_path)
    with pytest.raises(UserError, match=r"lora: rank 8 and alpha 12\.0 differ .*\(4, 12\.0\)"):
        load(adapter, lora=LoraConfig(8, ALPHA))
    with pytest.raises(UserError, match=r"lora\.targets: .*q_proj, v_proj.*leave targets out"):
        load(adapter, lora=LoraConfig(RANK, ALPHA, targets=["q_proj"]))
    load(adapter, lora=LoraConfig(RANK, ALPHA, targets=["v_proj", "q_proj"]))


def test_the_header_of_an_adapter_tells_its_form_without_its_weights(tmp_path):
    adapter, _ = make_kind(KINDS["all-linear"], tmp_path)
    saved, header = read_adapter(adapter), read_adapter(adapter, header=True)
    assert header.layers().keys() == saved.layers().keys() and (header.rank, header.alpha) == (RANK, ALPHA)
    assert {n: t.shape for n, t in header.tensors.items()} == {n: t.shape for n, t in saved.tensors.items()}
    assert all(tensor.is_meta for tensor in header.tensors.values())
    edit_config(adapter, peft_type="IA3")
    with pytest.raises(UserError, match="peft_type IA3 is not supported; merge it into its base with"):
        read_adapter(adapter, header=True)


def test_adapters_of_another_base_are_errors(tmp_path):
    adapter, _ = make_kind(KINDS["all-linear"], tmp_path)
    other = save_base(tmp_path / "other", architecture="GPT2")
    description = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(description | {"base_model_name_or_path": str(other)}))
    with pytest.raises(UserError, match=r"fit no layer of this model, such as .*belongs to another base model"):
        load(adapter, trainable=False)


def test_resized_embeddings_of_peft_are_taken_over(tmp_path):
    """Tokens were added, the embedding resized, and it was saved beside the adapter."""
    base = save_base(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    module.resize_token_embeddings(305)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(module, peft.LoraConfig(r=RANK, target_modules=Q, init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    engine = load(tmp_path / "adapter", lora=LoraConfig(RANK, 8))
    assert engine.vocabulary == 305 and find_gap(engine, theirs) < PARITY
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert find_gap(engine, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) < PARITY


def test_a_pair_loss_trains_every_kind(tmp_path):
    adapter, _ = make_kind(KINDS["modules_to_save: head and embedding, tied"], tmp_path)
    engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
    engine.keep_reference()
    data = make_data(engine.tokenizer)
    reference = engine.logprobs(data, reference=True)
    pairs = [Datum(d.tokens, d.weights, unit=d.unit, ref_logprobs=r) for d, r in zip(data, reference, strict=True)]
    margins = []
    for _ in range(3):
        margins.append(engine.forward_backward(pairs, DPO())["reward/margin"])
        engine.optim_step(1e-2)
    assert margins[0] == 0 < margins[1] < margins[2]


def print_table() -> None:
    import tempfile

    warnings.simplefilter("ignore")
    print(f"{'kind':44}{'loaded':>10}{'merged':>10}{'trained on, saved, in peft':>28}")
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            adapter, theirs = make_kind(kind, Path(folder), name)
            merged = find_gap(load(adapter, trainable=False), theirs)
            engine = load(adapter, lora=LoraConfig(RANK, ALPHA))
            loaded = find_gap(engine, theirs)
            train(engine).export(Path(folder) / "saved")
            saved = find_gap(engine, reload_with_peft(Path(folder) / "saved"))
        print(f"{name:44}{loaded:10.1e}{merged:10.1e}{saved:28.1e}")


if __name__ == "__main__":
    print_table()

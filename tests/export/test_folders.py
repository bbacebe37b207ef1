"""Exported folders and adapters: plain transformers and peft load them, and they say what the trained model says. A
damaged one is refused, and nothing of it is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.errors import UserError
from aurify.export import folders
from aurify.export.card import Origin
from aurify.export.export import export_model
from aurify.models.loading import cast_weights, save_model
from aurify.models.model import ModelConfig, load_model, tiny_model
from aurify.types import Datum

QUESTION = "What is 3 + 4?"
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks it


@pytest.fixture(scope="module")
def base(tmp_path_factory, dtype):
    folder = tmp_path_factory.mktemp("models") / "base"
    made = tiny_model(seed=1, initializer_range=0.1)
    save_model(cast_weights(made.module, getattr(torch, dtype)), made.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, dtype):
    """A folder with all weights trained, and one with an adapter."""
    for name, lora in (("full", None), ("adapter", LoraConfig(rank=4, alpha=16))):
        engine = Engine(load_model(ModelConfig(str(base), dtype=dtype)), lora=lora)
        tokens = engine.tokenizer.encode(QUESTION)
        for _ in range(4):
            engine.forward_backward([Datum(tokens, [0.0] + [1.0] * (len(tokens) - 1))], SFT())
            engine.optim_step(3e-2)
        engine.export(base.parent / name)
    return base.parent


def logits(module, folder: Path) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(QUESTION, return_tensors="pt").input_ids
    with torch.no_grad():
        return module.float().eval()(tokens).logits[0]


def exports_left(parent: Path) -> list[str]:
    """Nothing half-written, under whatever name."""
    return sorted(path.name for path in parent.iterdir())


def test_a_full_model_keeps_its_bits_in_shards(trained, tmp_path):
    from transformers import AutoModelForCausalLM

    found = export_model("folder", Origin(str(trained / "full")), tmp_path / "out", max_shard_size="60KB")
    assert found["safetensors"].difference < 1e-5
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 80_000 for shard in shards)
    own = load_file(trained / "full" / "model.safetensors")
    exported = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert own.keys() == exported.keys() and all(own[name].equal(exported[name]) for name in own)
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert module.dtype == AutoModelForCausalLM.from_pretrained(trained / "full").dtype
    before = logits(AutoModelForCausalLM.from_pretrained(trained / "full"), trained / "full")
    torch.testing.assert_close(logits(module, tmp_path / "out"), before)


def test_an_adapter_is_merged_into_the_dtype_of_its_base(trained, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'aurify[bench]'")
    found = export_model("folder", Origin(str(trained / "adapter")), tmp_path / "out")["safetensors"]
    assert found.share < {"float32": 1e-4, "bfloat16": 0.02}[dtype]
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert module.dtype == getattr(torch, dtype)
    adapted = logits(peft.AutoPeftModelForCausalLM.from_pretrained(trained / "adapter"), trained / "adapter")
    plain = logits(AutoModelForCausalLM.from_pretrained(trained / "base"), trained / "base")
    merged = logits(module, tmp_path / "out")
    assert (merged - adapted).norm() < {"float32": 1e-4, "bfloat16": 0.02}[dtype] * adapted.norm()
    assert (merged - plain).norm() > 0.2 * adapted.norm(), "training has changed something"


def test_an_adapter_alone_is_for_peft(trained, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'aurify[bench]'")
    found = export_model("adapter", Origin(str(trained / "adapter")), tmp_path / "out")["adapter"]
    assert found.difference < 1e-5
    module = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    own = peft.AutoPeftModelForCausalLM.from_pretrained(trained / "adapter")
    torch.testing.assert_close(logits(module, tmp_path / "out"), logits(own, trained / "adapter"))
    with pytest.raises(UserError, match="has no adapter, its weights are whole"):
        export_model("adapter", Origin(str(trained / "full")), tmp_path / "other")


def nudge(file: Path) -> None:
    """A tenth of one weight matrix is lost."""
    tensors = load_file(file)
    name = next(name for name in tensors if "down_proj" in name)
    rows = max(1, len(tensors[name]) // 10)
    tensors[name][:rows] = 0
    save_file(tensors, file, {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def confuse(file: Path) -> None:
    """Two letters change places in the tokenizer."""
    path = file.with_name("tokenizer.json")
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("damage", [nudge, cut, confuse])
@pytest.mark.parametrize("format", ["folder", "adapter"])
def test_a_damaged_export_is_refused(trained, tmp_path, monkeypatch, format, damage):
    def damaged(trained_model, folder, kind):
        damage(next(iter(sorted(folder.glob("*.safetensors")))))
        return plain(trained_model, folder, kind)

    plain = folders.check_exported_folder
    monkeypatch.setattr(folders, "check_exported_folder", damaged)
    before = exports_left(tmp_path)
    with pytest.raises(UserError, match="the export is refused, and nothing of it is left"):
        export_model(format, Origin(str(trained / "adapter")), tmp_path / "out")
    assert exports_left(tmp_path) == before


def test_an_export_never_replaces_a_folder(trained, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already; name a new folder"):
        export_model("folder", Origin(str(trained / "full")), tmp_path / "out")
    assert exports_left(tmp_path / "out") == []


def test_a_shard_size_that_is_none(trained, tmp_path):
    for size in ("big", "5", "0GB", "-1GB"):
        with pytest.raises(UserError, match=f"--max-shard-size '{size}': write it as 500MB or 5GB"):
            export_model("folder", Origin(str(trained / "full")), tmp_path / "out", max_shard_size=size)
    assert exports_left(tmp_path) == []

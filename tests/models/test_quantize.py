"""Reading and writing quantised models: what is quantised, how many bytes it has, and who can load it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_file import write_gguf
from typer.testing import CliRunner

from aurify.cli.main import app
from aurify.errors import UserError
from aurify.hardware import return_freed_memory
from aurify.models.loading import cast_weights, save_model
from aurify.models.model import ModelConfig, load_model, tiny_model
from aurify.models.quantize import quantize_model
from aurify.models.quantized_linear import QuantizedLinear, count_bytes

BLOCK, OUTER = 64, 256  # weights of a scale, and scales of a scale of scales, in NF4
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}


@pytest.fixture
def base(tmp_path):
    made = tiny_model(**SIZES)
    save_model(cast_weights(made.module, torch.bfloat16), made.tokenizer, tmp_path / "base")
    return str(tmp_path / "base")


def own_bytes():
    """Of this process: what it has allocated, without the pages of files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def codes(module):
    return {name: tensor for name, tensor in module.named_buffers() if "codes" in name or "scale" in name}


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"install bitsandbytes with: pip install 'aurify\[quantize\]'"):
        load_model(ModelConfig("random:tiny", quantize="nf4"))


def test_an_unknown_kind_is_an_error_before_anything_is_read():
    with pytest.raises(UserError, match=r"model.quantize: 'nf5' is not known; give nf4 or int8; did you mean 'nf4'"):
        load_model(ModelConfig("random:tiny", quantize="nf5"))


class TestWithBitsandbytes:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'aurify[quantize]'")

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_layers_are_codes_and_all_else_is_whole(self, base, kind, dtype):
        module = load_model(ModelConfig(base, quantize=kind, dtype=dtype)).module
        layers = [part for part in module.modules() if type(part) is QuantizedLinear]
        assert len(layers) == 8 * 7 and type(module.lm_head) is torch.nn.Linear
        assert {parameter.dtype for parameter in module.parameters()} == {getattr(torch, dtype)}
        whole = load_model(ModelConfig(base, dtype=dtype)).module
        expected = count_bytes(whole)
        for layer in layers:
            rows, columns = layer.out_features, layer.in_features
            num, width = rows * columns, getattr(torch, dtype).itemsize
            nf4 = num // 2 + num // BLOCK + 4 * -(-num // BLOCK // OUTER) + 4 * 256 + 4  # codes, scales twice, table
            expected += (nf4 if kind == "nf4" else num + 4 * rows) - width * num
        assert count_bytes(module) == expected

    def test_codes_do_not_depend_on_what_is_computed_in(self, base):
        both = [codes(load_model(ModelConfig(base, quantize="nf4", dtype=d)).module) for d in ("float32", "bfloat16")]
        assert all(tensor.equal(both[1][name]) for name, tensor in both[0].items()) and both[0]

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_layers_are_near_the_whole_ones(self, base, kind):
        quantized = load_model(ModelConfig(base, quantize=kind, dtype="float32")).module
        whole = load_model(ModelConfig(base, dtype="float32")).module
        for name, layer in quantized.named_modules():
            if type(layer) is QuantizedLinear:
                weight = whole.get_submodule(name).weight.detach()
                error = float((layer.weight - weight).norm() / weight.norm())
                assert error < (0.11 if kind == "nf4" else 0.012), name

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_the_whole_model_is_never_in_memory(self, tmp_path, monkeypatch):
        """Measured at each tensor that is quantised, and at the end: codes, and a few tensors more. In a process of its
        own, whose allocator gives back what is freed: else it keeps up to 300 MB, as its threads happen to run."""
        if "OWN_PROCESS" not in os.environ:
            name = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0].partition("::")[2]
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{name}"]
            environment = {**os.environ, "OWN_PROCESS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert ended.returncode == 0 and "1 passed" in ended.stdout, ended.stdout
            return
        import bitsandbytes as bnb

        made = tiny_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
        save_model(cast_weights(made.module, torch.bfloat16), made.tokenizer, tmp_path / "base")
        whole = count_bytes(made.module)
        del made
        quantise, seen = bnb.nn.Params4bit._quantize, []

        def watched(self, device):
            seen.append(own_bytes())
            return quantise(self, device)

        monkeypatch.setattr(bnb.nn.Params4bit, "_quantize", watched)
        load_model(ModelConfig("random:tiny", quantize="nf4"))  # imports what it needs
        seen.clear()
        return_freed_memory()
        before = own_bytes()
        module = load_model(ModelConfig(str(tmp_path / "base"), quantize="nf4", dtype="bfloat16")).module
        assert len(seen) == 56 and count_bytes(module) < 0.3 * whole
        assert max(*seen, own_bytes()) - before < count_bytes(module) + 0.25 * whole

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_a_written_folder_is_loaded_by_us_and_by_transformers(self, base, kind, tmp_path):
        from transformers import AutoModelForCausalLM

        result = CliRunner().invoke(
            app, ["quantize", base, str(tmp_path / "out"), "--to", kind], catch_exceptions=False
        )
        assert result.exit_code == 0 and f"the layers' in {kind}" in result.output
        ours = load_model(ModelConfig(str(tmp_path / "out"), dtype="float32"))
        straight = load_model(ModelConfig(base, quantize=kind, dtype="float32"))
        assert ours.quantized == kind and ours.tokenizer.chat_template
        assert all(tensor.equal(codes(straight.module)[name]) for name, tensor in codes(ours.module).items())
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
        tokens = torch.arange(1, 40)[None]
        with torch.no_grad():
            gap = theirs(tokens).logits.float().log_softmax(-1) - ours.module(tokens).logits.log_softmax(-1)
        assert gap.abs().max() < 0.05  # its layers round to bf16, or their inputs to 8 bits

    def test_a_gguf_file_is_quantised_once(self, tmp_path):
        made = tiny_model(vocab_size=len(tiny_model().tokenizer) + 1)
        path = tmp_path / "tiny.gguf"
        write_gguf(made.module.float(), made.tokenizer, path)
        with pytest.raises(UserError, match=r"only read as a whole. Quantise it once, with: aurify quantize"):
            load_model(ModelConfig(str(path), quantize="nf4"))
        quantize_model(str(path), tmp_path / "out", "nf4")
        assert load_model(str(tmp_path / "out")).quantized == "nf4"

    def test_what_cannot_be_quantised_is_refused(self, base, tmp_path):
        quantize_model(base, tmp_path / "out", "nf4")
        with pytest.raises(UserError, match=r"asks for int8, but its files are in nf4; leave model.quantize out"):
            load_model(ModelConfig(str(tmp_path / "out"), quantize="int8"))
        with pytest.raises(UserError, match="in nf4 already"):
            quantize_model(str(tmp_path / "out"), tmp_path / "again", "nf4")
        with pytest.raises(UserError, match="is there already"):
            quantize_model(base, tmp_path / "out", "nf4")
        with pytest.raises(UserError, match="did you mean 'int8'"):
            quantize_model(base, tmp_path / "again", "int")
        config = json.loads((tmp_path / "base" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="asks for nf4, but its files are in gptq"):
            load_model(ModelConfig(base, quantize="nf4"))

    def test_rows_for_new_tokens_are_added(self, base, tmp_path):
        loaded = load_model(base)
        loaded.tokenizer.add_tokens(["<new>"])
        loaded.tokenizer.save_pretrained(base)
        quantized = load_model(ModelConfig(base, quantize="nf4", resize_embeddings=True))
        assert quantized.num_new_rows == 1 and quantized.vocabulary == loaded.vocabulary + 1

"""GGUF files, run by llama.cpp itself: they say what the trained model says, within what their type may lose."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_tokenizer import llama_tokenizer

from aurify.errors import UserError
from aurify.export import gguf
from aurify.export.agreement import TOLERANCES, compute_export_log_probs, continue_probe_prompt
from aurify.export.card import Origin
from aurify.export.export import export_model
from aurify.models.loading import save_model
from aurify.models.model import load_model
from aurify.models.tiny import random_llama


@pytest.fixture(scope="module", autouse=True)
def tools():
    for module in ("xllamacpp", "sentencepiece"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'aurify[gguf]'")
    try:
        gguf.fetch_converter()
    except UserError as error:
        pytest.skip(f"llama.cpp's converter cannot be fetched: {error}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.04, "bos_token_id": 1}
    save_model(random_llama(llama_tokenizer(), scalar_head=False, seed=0, **sizes), llama_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "out"
    found = export_model(
        "ollama",
        Origin(str(model)),
        folder,
        types=["q8_0", "f32", "q4_k_m"],
        system="Be brief.",
        parameters={"temperature": "0.5"},
    )
    return folder, found


def test_each_type_agrees_as_far_as_its_bits_allow(exported):
    folder, found = exported
    assert sorted(file.name for file in folder.iterdir()) == [
        "Modelfile",
        "README.md",
        "tiny-f32.gguf",
        "tiny-q4_k_m.gguf",
        "tiny-q8_0.gguf",
    ]
    assert found["f32"].share < found["q8_0"].share < found["q4_k_m"].share < TOLERANCES["q4_k_m"]
    assert found["f32"].share < 0.01 and found["q8_0"].same_choice > 0.95
    sizes = [(folder / f"tiny-{kind}.gguf").stat().st_size for kind in ("f32", "q8_0", "q4_k_m")]
    assert sizes[0] > 3 * sizes[1] and sizes[1] > 1.5 * sizes[2]
    assert all(str(agreement) in (folder / "README.md").read_text() for agreement in found.values())


def test_plain_transformers_reads_the_files_as_well(exported, model):
    """Its dequantised weights, without llama.cpp: an error of ours in q4_k_m that both would share is not possible."""
    own = load_model(str(model), dtype="float32", device="cpu").module
    tokens = continue_probe_prompt(own, [5, 300, 290, 280])
    for kind, bound in (("f32", 1e-4), ("q8_0", 0.03), ("q4_k_m", 0.5)):
        module = load_model(str(exported[0] / f"tiny-{kind}.gguf"), dtype="float32", device="cpu").module
        expected, found = compute_export_log_probs(own, tokens), compute_export_log_probs(module, tokens)
        assert (found - expected).std() < bound * expected.std(), kind


def test_the_modelfile_names_file_template_system_and_stop(exported):
    lines = (exported[0] / "Modelfile").read_text()
    assert lines.startswith('FROM ./tiny-q8_0.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}')
    assert 'SYSTEM """Be brief."""\nPARAMETER stop """<|im_end|>"""\nPARAMETER temperature 0.5\n' in lines


def flip(file: Path) -> None:
    """The values of one matrix are written with the wrong sign."""
    import gguf as library

    reader = library.GGUFReader(file, "r+")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    blocks = data.reshape(len(data), -1, 34)  # of q8_0: two bytes of scale, 32 values
    blocks[:, :, 1] ^= 0x80  # the sign of the scale
    data.flush()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(("damage", "said"), [(flip, "its log-probs differ by"), (cut, "llama.cpp cannot run")])
def test_a_damaged_file_is_refused(model, tmp_path, monkeypatch, damage, said):
    def damaged(plain: Path, file: Path, kind: str) -> None:
        convert(plain, file, kind)
        damage(file)

    convert = gguf.convert_to_gguf
    monkeypatch.setattr(gguf, "convert_to_gguf", damaged)
    with pytest.raises(UserError, match=f"refused, and nothing of it is left: .*{said}"):
        export_model("gguf", Origin(str(model)), tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_with_its_reason(tmp_path):
    with pytest.raises(UserError, match=r"converter cannot write this model as q8_0: .*`aurify export folder`"):
        export_model("gguf", Origin("random:tiny"), tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_type_is_refused_with_the_command_that_makes_it():
    with pytest.raises(UserError, match=r"--type q5_k_m: known are .*llama-quantize MODEL-bf16.gguf MODEL-q5_k_m.gguf"):
        gguf.check_gguf_types(["q8_0", "q5_k_m"])

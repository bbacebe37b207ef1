"""`aurify doctor`: looks at the machine and the installation, and says in plain lines what that means for training."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import typer

from aurify.cli.list import wrap_hanging

Verdict = Literal["ok", "note", "problem"]
Finding = tuple[Verdict, str, str]  # with its subject and what there is to say
MARKS = {
    "ok": ("ok", typer.colors.GREEN),
    "note": ("note", typer.colors.YELLOW),
    "problem": ("PROBLEM", typer.colors.RED),
}
ENDINGS = {
    "ok": "Nothing is missing; `aurify demo` shows it at work.",
    "note": "Aurify can run; `aurify demo` shows it at work. The notes say what would make it more complete.",
    "problem": "Mend the problems above first.",
}
CORE = ("torch", "transformers", "safetensors", "gguf", "accelerate", "numpy", "pydantic", "omegaconf", "typer", "rich")
EXTRAS = {  # module -> (extra, what it gives)
    "tensorboard": ("tensorboard", "TensorBoard files of each stage"),
    "datasets": ("hub", "data sets from the hub"),
    "reasoning_gym": ("gym", "the tasks gym:*"),
    "gymnasium": ("gymnasium", "environments of Gymnasium"),
    "math_verify": ("math", "answers compared as mathematics"),
    "httpx": ("judge", "a language model as a judge"),
    "lancedb": ("memory", "knowledge bases"),
    "sentence_transformers": ("memory", "dense search and rerankers"),
    "jsonschema": ("tools", "the reward call_valid"),
    "mcp": ("mcp", "tools of MCP servers"),
    "starlette": ("serve", "a knowledge base over HTTP"),
    "bitsandbytes": ("quantize", "base weights and optimiser states in 4 and 8 bits"),
}
SUBJECT_WIDTH = max(map(len, EXTRAS))
GIB = 1024**3
HUB_SECONDS = 3.0
MEMORY_OF_DEMO = 3  # GiB


def doctor() -> None:
    """Check the machine and the installation."""
    worst: Verdict = "ok"
    for check in CHECKS:
        for verdict, subject, text in check():
            label, colour = MARKS[verdict]
            shown = wrap_hanging(text, 10 + SUBJECT_WIDTH)
            typer.echo(f"{typer.style(f'{label:8}', fg=colour)}{subject:{SUBJECT_WIDTH}}  {shown}")
            worst = max(worst, verdict, key=list(MARKS).index)
    typer.echo(ENDINGS[worst])
    if worst == "problem":
        raise typer.Exit(1)


def diagnose_packages() -> Iterator[Finding]:
    yield "ok", "python", platform.python_version()
    for name in CORE:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield "problem", name, "not installed; run `pip install aurify`"
            continue
        if name in ("torch", "transformers"):
            yield "ok", name, found


def diagnose_processor() -> Iterator[Finding]:
    import torch

    from aurify.hardware import cpu_has_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} cores, {threads} threads for torch, {torch.backends.cpu.get_cpu_capability()}"
    if threads < cores // 2:
        yield "note", "cpu", f"{text}; OMP_NUM_THREADS holds torch back"
    else:
        yield "ok", "cpu", text
    if cpu_has_bf16():
        text = "in hardware: models are loaded in bf16, at half the memory and about twice the speed"
    else:
        text = "not in hardware: models are loaded in fp32, four bytes a parameter"
    yield "ok", "bf16 on cpu", text


def diagnose_memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < MEMORY_OF_DEMO * GIB:
        yield "note", "memory", f"{text}; the demo wants about {MEMORY_OF_DEMO}"
    else:
        yield "ok", "memory", text


def diagnose_gpu() -> Iterator[Finding]:
    import torch

    from aurify.hardware import multiplies_bf16

    if not torch.cuda.is_available():
        yield "ok", "gpu", "none that torch can use; everything runs on the CPU"
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if multiplies_bf16(torch.device("cuda", index))[0]:
            yield "ok", f"gpu {index}", text
        else:
            yield "note", f"gpu {index}", f"{text}; no bf16 in hardware, fp32 is used"


def diagnose_hub() -> Iterator[Finding]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield "note", "model hub", "switched off by HF_HUB_OFFLINE; local and catalogue models work"
        return
    address = urlparse(ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=HUB_SECONDS).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield "note", "model hub", f"out of reach ({reason}); local and catalogue models work (`aurify models`)"
    else:
        yield "ok", "model hub", "answers"


def diagnose_folders() -> Iterator[Finding]:
    from aurify.files import cache_folder
    from aurify.models import catalog

    known = [model.name for model in catalog.KNOWN.values() if catalog.is_cached_model(model)]
    names = ", ".join(known + catalog.list_hub_models()) or "empty"
    yield "ok", "model cache", f"{names} (in {cache_folder()} and the hub's cache)"
    cache = next(parent for parent in (cache_folder(), *cache_folder().parents) if parent.exists())
    for subject, folder in (("disk, cache", cache), ("disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free
        if free < 5 * GIB:
            yield "note", subject, f"{free / GIB:.0f} GiB free; checkpoints may not fit"
        else:
            yield "ok", subject, f"{free / GIB:.0f} GiB free"
    if not os.access(Path.cwd(), os.W_OK):
        yield "problem", "disk, here", "this folder cannot be written to; runs are written to ./runs (see --runs)"


def diagnose_extras() -> Iterator[Finding]:
    for module, (extra, gives) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield "ok", module, gives
        else:
            yield "note", module, f"not installed: {gives}; `pip install 'aurify[{extra}]'`"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    diagnose_packages,
    diagnose_processor,
    diagnose_memory,
    diagnose_gpu,
    diagnose_hub,
    diagnose_folders,
    diagnose_extras,
)

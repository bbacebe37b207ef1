"""`aurify doctor`: looks at the machine and the installation, and says in plain lines what that means for training."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import typer

Verdict = Literal["ok", "note", "problem"]
MARKS = {
    "ok": ("ok", typer.colors.GREEN),
    "note": ("note", typer.colors.YELLOW),
    "problem": ("PROBLEM", typer.colors.RED),
}
CORE = ("torch", "transformers", "safetensors", "gguf", "accelerate", "numpy", "pydantic", "omegaconf", "typer", "rich")
EXTRAS = {  # module -> (extra, what it gives)
    "tensorboard": ("tensorboard", "TensorBoard files of each stage"),
    "datasets": ("hub", "data sets from the hub"),
    "reasoning_gym": ("gym", "the tasks gym:*"),
    "math_verify": ("math", "answers compared as mathematics"),
    "httpx": ("judge", "a language model as a judge"),
    "lancedb": ("memory", "knowledge bases"),
    "sentence_transformers": ("memory", "dense search and rerankers"),
    "starlette": ("serve", "a knowledge base over HTTP"),
}
GIB = 1024**3
HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    subject: str
    text: str


def doctor() -> None:
    """Check the machine and the installation."""
    worst: Verdict = "ok"
    for check in CHECKS:
        for finding in check():
            label, colour = MARKS[finding.verdict]
            typer.echo(f"{typer.style(f'{label:8}', fg=colour)}{finding.subject:14}{finding.text}")
            worst = max(worst, finding.verdict, key=list(MARKS).index)
    endings = {
        "ok": "Everything is in place; `aurify demo` shows it at work.",
        "note": "Aurify can run; `aurify demo` shows it at work. The notes say what would make it more complete.",
        "problem": "Mend the problems above first.",
    }
    typer.echo(endings[worst])
    if worst == "problem":
        raise typer.Exit(1)


def python_and_packages() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if good else "problem", "python", platform.python_version() + ("" if good else "; 3.11 or newer is needed")
    )
    for name in CORE:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("problem", name, "not installed; run `pip install aurify`")
            continue
        if name in ("torch", "transformers"):
            yield Finding("ok", name, found)


def processor() -> Iterator[Finding]:
    import torch

    from aurify.hardware import cpu_has_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} cores, {threads} threads for torch, {torch.backends.cpu.get_cpu_capability()}"
    if threads < cores // 2:
        yield Finding("note", "cpu", f"{text}; OMP_NUM_THREADS holds torch back")
    else:
        yield Finding("ok", "cpu", text)
    if cpu_has_bf16():
        yield Finding(
            "ok", "bf16 on cpu", "in hardware: models are loaded in bf16, at half the memory and about twice the speed"
        )
    else:
        yield Finding("ok", "bf16 on cpu", "not in hardware: models are loaded in fp32, four bytes a parameter")


def memory() -> Iterator[Finding]:
    total, free = memory_bytes()
    if total is None or free is None:
        yield Finding("note", "memory", "could not be read on this system")
    elif free < 3 * GIB:
        yield Finding("note", "memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free; the demo wants about 3")
    else:
        yield Finding("ok", "memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free")


def memory_bytes() -> tuple[int | None, int | None]:
    """The memory (RAM) of this machine, total and available: Linux's own figures, or the physical pages elsewhere; None
    where neither is known."""
    figures = Path("/proc/meminfo")
    if figures.exists():
        lines = dict(line.split(":", 1) for line in figures.read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, free
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None, None
    return total, total


def gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("ok", "gpu", "none that torch can use; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding(
            "ok" if fast else "note", f"gpu {index}", text + ("" if fast else "; no bf16 in hardware, fp32 is used")
        )


def hub() -> Iterator[Finding]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Finding("note", "model hub", "switched off by HF_HUB_OFFLINE; local and catalogue models work")
        return
    place = urlparse(ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=HUB_SECONDS).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield Finding(
            "note", "model hub", f"out of reach ({reason}); local and catalogue models work (`aurify models`)"
        )
    else:
        yield Finding("ok", "model hub", "answers")


def caches() -> Iterator[Finding]:
    from aurify.cli.models import hub_models
    from aurify.files import cache_folder
    from aurify.models import catalog

    known = [model.name for model in catalog.KNOWN.values() if catalog.is_cached(model)]
    names = known + [name for name, _ in hub_models()]
    yield Finding("ok", "model cache", f"{', '.join(names) or 'empty'} (in {cache_folder()} and the hub's cache)")
    folder = next(parent for parent in (cache_folder(), *cache_folder().parents) if parent.exists())
    for subject, place in (("disk, cache", folder), ("disk, here", Path.cwd())):
        free = shutil.disk_usage(place).free
        low = free < 5 * GIB
        yield Finding(
            "note" if low else "ok",
            subject,
            f"{free / GIB:.0f} GiB free" + ("; checkpoints may not fit" if low else ""),
        )
    if not os.access(Path.cwd(), os.W_OK):
        yield Finding(
            "problem", "disk, here", "this folder cannot be written to; runs are written to ./runs (see --runs)"
        )


def extras() -> Iterator[Finding]:
    for module, (extra, gives) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Finding("ok", module, gives)
        else:
            yield Finding("note", module, f"not installed: {gives}; `pip install 'aurify[{extra}]'`")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (python_and_packages, processor, memory, gpu, hub, caches, extras)

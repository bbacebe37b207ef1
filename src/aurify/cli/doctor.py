"""`aurify doctor`: looks at the machine and the installation, says in plain lines what that means for training, and
with which command each finding is mended."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import typer

from aurify.cli.list import wrap_hanging
from aurify.errors import UserError

Verdict = Literal["ok", "note", "problem"]
Finding = tuple[Verdict, str, str]  # with its subject and what there is to say: of a fault, the command that mends it
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
NVIDIA = Path("/proc/driver/nvidia/version")  # there where a driver is loaded
MEMORY_OF_DEMO = 3  # GiB
REINSTALL = "`pip install --upgrade --force-reinstall aurify`"


def doctor() -> None:
    """Check the machine and the installation."""
    worst: Verdict = "ok"
    for check in CHECKS:
        for verdict, subject, text in run_check(check):
            label, colour = MARKS[verdict]
            shown = wrap_hanging(text, 10 + SUBJECT_WIDTH)
            typer.echo(f"{typer.style(f'{label:8}', fg=colour)}{subject:{SUBJECT_WIDTH}}  {shown}")
            worst = max(worst, verdict, key=list(MARKS).index)
    typer.echo(ENDINGS[worst])
    if worst == "problem":
        raise typer.Exit(1)


def run_check(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Its findings. A check that fails, say for a package that cannot be imported, is a finding itself."""
    try:
        yield from check()
    except Exception as error:
        subject = check.__name__.removeprefix("diagnose_")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield "problem", subject, f"cannot be looked at ({reason[:200]}); {REINSTALL}"


def diagnose_packages() -> Iterator[Finding]:
    yield "ok", "python", platform.python_version()
    for name in CORE:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield "problem", name, f"not installed; `pip install {name}`, or all with {REINSTALL}"
            continue
        if name in ("torch", "transformers"):
            yield "ok", name, found
    yield from diagnose_versions()


def diagnose_versions() -> Iterator[Finding]:
    """Packages that are installed in a version that Aurify does not work with."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("aurify") or ()]
    except PackageNotFoundError:
        source = f"{Path(__file__).parents[3]}"
        yield "note", "aurify", f"runs from its source and is not installed; `pip install -e {source}`"
        return
    told = set()
    for one in needed:
        extras = ["", *{extra for extra, _ in EXTRAS.values()}]
        if one.name in told or not any(one.marker is None or one.marker.evaluate({"extra": e}) for e in extras):
            continue
        try:
            found = version(one.name)
        except PackageNotFoundError:
            continue
        if not one.specifier.contains(found, prereleases=True):
            told.add(one.name)
            core = one.name in CORE
            mend = f"`pip install '{one.name}{one.specifier}'`"
            yield "problem" if core else "note", one.name, f"{found} is installed, {one.specifier} is needed; {mend}"


def diagnose_processor() -> Iterator[Finding]:
    import torch

    from aurify.hardware import DTYPE_VARIABLE, DTYPES, cpu_has_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} cores, {threads} threads for torch, {torch.backends.cpu.get_cpu_capability()}"
    if threads < cores // 2:
        yield "note", "cpu", f"{text}; OMP_NUM_THREADS holds torch back: `unset OMP_NUM_THREADS`"
    else:
        yield "ok", "cpu", text
    if cpu_has_bf16():
        text = "in hardware: models are loaded in bf16, at half the memory and about twice the speed"
    else:
        text = "not in hardware: models are loaded in fp32, four bytes a parameter"
    yield "ok", "bf16 on cpu", text
    dtype = os.environ.get(DTYPE_VARIABLE)
    if dtype is not None and dtype not in (*DTYPES, "auto"):
        known = ", ".join(DTYPES)
        yield "problem", "dtype", f"{DTYPE_VARIABLE} is {dtype!r}, not one of {known}; `unset {DTYPE_VARIABLE}`"


def diagnose_memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < MEMORY_OF_DEMO * GIB:
        yield (
            "note",
            "memory",
            (
                f"{text}; the demo wants about {MEMORY_OF_DEMO}. `aurify plan RECIPE` says what a recipe needs, and "
                "`memory=auto` after it changes what does not fit"
            ),
        )
    else:
        yield "ok", "memory", text


def diagnose_gpu() -> Iterator[Finding]:
    import torch

    from aurify.hardware import multiplies_bf16

    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not NVIDIA.exists():
            yield "ok", "gpu", "none that torch can use; everything runs on the CPU"
        elif hidden is not None and hidden.strip() in ("", "-1"):
            text = "there is one, and CUDA_VISIBLE_DEVICES hides it: everything runs on the CPU"
            yield "note", "gpu", f"{text}; `unset CUDA_VISIBLE_DEVICES`"
        elif torch.version.cuda is None:
            text = f"there is one, and torch {torch.__version__} is built for the CPU alone"
            yield "problem", "gpu", f"{text}; `pip install --force-reinstall torch`"
        else:
            text = f"there is one, and torch, built for CUDA {torch.version.cuda}, cannot use it"
            yield "problem", "gpu", f"{text}; `nvidia-smi` shows the driver, which may be too old"
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if free < total / 2:
            yield "note", f"gpu {index}", f"{text}; somebody else uses it: `nvidia-smi` shows who"
        elif multiplies_bf16(torch.device("cuda", index))[0]:
            yield "ok", f"gpu {index}", text
        else:
            yield "note", f"gpu {index}", f"{text}; no bf16 in hardware, fp32 is used"


def diagnose_hub() -> Iterator[Finding]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    without = "local and catalogue models work (`aurify models`)"
    if HF_HUB_OFFLINE:
        yield "note", "model hub", f"switched off; {without}. `unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE`"
        return
    address = urlparse(ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=HUB_SECONDS).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        mend = "Through a proxy or a mirror: `export HTTPS_PROXY=URL`, `export HF_ENDPOINT=URL`"
        yield "note", "model hub", f"{address.hostname} is out of reach ({reason}); {without}. {mend}"
    else:
        yield "ok", "model hub", "answers"


def diagnose_folders() -> Iterator[Finding]:
    from aurify.files import cache_folder
    from aurify.models import catalog

    known = [model.name for model in catalog.KNOWN.values() if catalog.is_cached_model(model)]
    names = ", ".join(known + catalog.list_hub_models()) or "empty"
    yield "ok", "model cache", f"{names} (in {cache_folder()} and the hub's cache)"
    cache = next(parent for parent in (cache_folder(), *cache_folder().parents) if parent.exists())
    for subject, folder, move in (
        ("disk, cache", cache, "`export AURIFY_CACHE=FOLDER` moves models elsewhere"),
        ("disk, here", Path.cwd(), "`aurify train RECIPE --runs FOLDER` keeps runs elsewhere"),
    ):
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield "problem", subject, f"{folder} cannot be written to; {move}"
        elif free < 5 * GIB:
            yield "note", subject, f"{free / GIB:.0f} GiB free; checkpoints may not fit; {move}"
        else:
            yield "ok", subject, f"{free / GIB:.0f} GiB free"


def read_terminal_encoding() -> str:
    return (sys.stdout.encoding or "").lower()


def diagnose_terminal() -> Iterator[Finding]:
    encoding = read_terminal_encoding()
    if encoding.replace("-", "") != "utf8":
        yield "note", "terminal", f"text is written as {encoding or 'unknown'}: tables break; `export PYTHONUTF8=1`"


def diagnose_sandbox() -> Iterator[Finding]:
    from aurify.sandbox.sandbox import find_sandbox_backend

    try:
        yield "ok", "sandbox", f"{find_sandbox_backend()}: runs code of models, for rewards and tools"
    except UserError as error:
        yield "note", "sandbox", f"{error}: `apt-get install bubblewrap`"


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
    diagnose_terminal,
    diagnose_sandbox,
    diagnose_extras,
)

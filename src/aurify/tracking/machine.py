"""What a run runs on, for run_info.json, and how much memory it needed at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from aurify import __version__

PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def describe_run_start(seed: Any) -> dict[str, Any]:
    return {
        "started": format_run_time(),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "versions": {"aurify": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": describe_run_hardware(),
        "git": describe_run_commit(),
    }


def format_run_time() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe_run_hardware() -> dict[str, Any]:
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": read_proc("cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
    torch = sys.modules.get("torch")  # never imported for this alone
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def describe_run_commit() -> str | None:
    """The commit of the working folder, marked if files differ from it; None outside of a repository."""
    try:
        result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def read_run_memory() -> float:
    """GiB: of the GPU where one is used, else of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    if high_water := read_proc("self/status", "VmHWM"):  # getrusage also counts what the parent had before it forked
        return int(high_water.split()[0]) / 2**20  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def begin_peak() -> float | None:
    """From now on the peak is measured anew. GiB that are held now: of the process, or on the GPU where one is used.
    None where the system cannot begin anew: then the peak is that of the whole process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated()) / 2**30
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark of resident memory
    except OSError:
        return None
    return psutil.Process().memory_info().rss / 2**30


def read_proc(file: str, key: str) -> str:
    """A value of Linux that psutil does not give; empty elsewhere."""
    path = Path("/proc", file)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")

"""How much memory the run has needed at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory_gb() -> float:
    """Of the GPU where one is used, else of the process, in GiB."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    status = Path("/proc/self/status")  # getrusage on Linux also counts the parent's peak before it started us
    if status.is_file():
        for line in status.read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)

"""What a model runs on: device, dtype, and how much memory there is. Everything else asks here.

A choice carries its reason, so that the console, `aurify doctor` and run_info.json can say what was chosen and why.
bf16 is taken where the hardware multiplies it. Elsewhere (CPUs without such instructions, cards before Ampere) it is
emulated and many times slower than fp32, so fp32 is taken."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from aurify.errors import UserError

log = logging.getLogger("aurify")

DTYPE_VARIABLE = "AURIFY_DTYPE"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last one on Arm


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_device(wish: str) -> torch.device:
    """wish: auto, cpu or cuda. Under torchrun each rank has the card of its local rank."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: 'cuda' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def choose_dtype(wish: str, device: torch.device) -> DtypeChoice:
    """wish: auto, float32 or bfloat16. The environment variable AURIFY_DTYPE says what auto means; without it the
    hardware decides."""
    asked = "model.dtype"
    if wish == "auto" and (variable := os.environ.get(DTYPE_VARIABLE)):
        if variable not in (*DTYPES, "auto"):
            raise UserError(
                f"environment variable {DTYPE_VARIABLE}: {variable!r} is not known; give {', '.join(DTYPES)} or auto"
            )
        wish, asked = variable, DTYPE_VARIABLE
    fast, hardware = multiplies_bf16(device)
    if wish == "auto":
        return DtypeChoice(torch.bfloat16 if fast else torch.float32, hardware)
    if wish not in DTYPES:
        raise UserError(f"{asked}: {wish!r} is not known; give {', '.join(DTYPES)} or auto")
    if wish == "bfloat16" and not fast:
        log.warning("%s: bfloat16 is emulated here and very slow (%s); use auto or float32", asked, hardware)
    return DtypeChoice(DTYPES[wish], f"{asked} asks for it")


def multiplies_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether matrix products in bf16 run in hardware, and how we know."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        card = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{card}, multiplies bf16"
        return False, f"{card}, is older than Ampere (8.0) and has no bf16"
    flags = cpu_bf16_flags()
    return bool(flags), f"this CPU has {flags[0]}" if flags else "this CPU has no bf16 instructions"


def cpu_bf16_flags() -> list[str]:
    capabilities = torch.cpu.get_capabilities()
    return [flag for flag in BF16_FLAGS if capabilities.get(flag)]


def cpu_has_bf16() -> bool:
    return bool(cpu_bf16_flags())


def usable_memory(device: torch.device) -> int:
    """Bytes that a training step may fill. On a GPU: what is free now, with what torch's allocator holds unused. On a
    CPU: half of the machine's memory, since what is free changes, and a resumed run must divide its rows as before."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return machine_memory() // 2


def machine_memory() -> int:
    """In bytes; a container's limit if there is one."""
    import psutil  # comes with accelerate

    physical = psutil.virtual_memory().total
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(physical, int(Path(file).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return physical


def return_freed_memory() -> None:
    """Gives the system what was freed. Each thread of glibc's allocator otherwise keeps its own: after a training step
    that is gigabytes, which the sampler's thread cannot use. Elsewhere it does nothing."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has a class for it; on a CPU a RuntimeError says it in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)

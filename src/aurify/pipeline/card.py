"""What a stage is to fit: the card or the RAM of this machine, or a card that is only named (`aurify plan --card
8GB`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil
import torch

from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.hardware import choose_device, choose_dtype, machine_memory, usable_memory
from aurify.models.model import ModelConfig

GIB = 2**30
CARDS = {
    "rtx3060": 12, "rtx3090": 24, "rtx4060": 8, "rtx4070": 12, "rtx4080": 16, "rtx4090": 24, "rtx5080": 16,
    "rtx5090": 32, "l4": 24, "a10": 24, "l40s": 48, "h100": 80,
}  # fmt: skip
RESERVED = round(0.6 * GIB)  # of a card, for CUDA's context, kernels and whoever draws the screen


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    device_type: str
    size: int  # bytes that a stage may take
    width: int  # bytes of a weight
    present: bool = True  # it is that of this machine

    def room(self, held: int, optimizer: int) -> int:
        """What the engine divides among activations; it asks `usable_memory`. held: by the model."""
        if not self.present:
            return self.size - held - optimizer
        return usable_memory(torch.device(self.device_type)) - optimizer - (0 if self.device_type == "cpu" else held)

    def cache_room(self, held: int) -> int:
        """What the sampler finds when it asks `usable_memory`. held: by model and optimiser."""
        return self.room(held, 0)


def choose_memory_card(model: ModelConfig, wish: str | None = None) -> Card:
    """wish: a number of GiB or a name, of a card with bf16; None: what this machine has."""
    if wish is not None:
        width = 4 if model.dtype == "float32" else 2
        size = read_memory_size(wish)
        return Card(f"a card of {size / GIB:g} GiB", "cuda", size - RESERVED, width, present=False)
    device = choose_device(model.device)
    width = choose_dtype(model.dtype, device).dtype.itemsize
    if device.type == "cuda":
        return Card(torch.cuda.get_device_name(device), "cuda", usable_memory(device), width)
    libraries = psutil.Process().memory_info().rss
    return Card(
        f"the RAM of this machine ({machine_memory() / GIB:.1f} GiB)", "cpu", machine_memory() - libraries, width
    )


def read_memory_size(wish: str) -> int:
    name = re.sub(r"[^a-z0-9.]", "", wish.lower()).removeprefix("nvidia").removeprefix("geforce")
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gb|gib|g)?", name)
    gib = float(number[1]) if number else CARDS.get(name)
    if gib is None:
        raise UserError(f"--card: {wish!r} is not known; give GiB, such as 8GB{did_you_mean(name, CARDS)}")
    if gib * GIB <= RESERVED:
        raise UserError(f"--card: {wish!r} is less than what a card keeps for itself (0.6 GiB)")
    return round(gib * GIB)

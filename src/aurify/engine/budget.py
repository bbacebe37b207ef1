"""How many tokens a micro-batch may have, and recomputing activations where they would not fit.

Saved activations decide it: `footprint.py` counts them. If memory runs out all the same, `retry_with_less_memory`
halves the micro-batch."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from aurify.engine.executor import Result
from aurify.engine.footprint import (
    Activations,
    Shape,
    Training,
    read_shape,
    read_training_memory,
    token_activation_bytes,
)
from aurify.hardware import is_out_of_memory, usable_memory

if TYPE_CHECKING:
    from aurify.engine.optim import MasterAdamW

log = logging.getLogger("aurify")

MEMORY_SHARE = 0.6  # of what is usable: the rest is for the head's chunks, gradients and fragmentation
MOST_TOKENS = {"cpu": 2048, "cuda": 16384}  # more brings nothing
ENOUGH_TOKENS = {"cpu": 1024, "cuda": 4096}  # with fewer, recomputing pays
LEAST_TOKENS = 256

Checkpointing = bool | Literal["auto", "offload"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    micro_batch_tokens: int
    activations: Activations
    token_bytes: int  # saved activations of one token

    @property
    def checkpointing(self) -> bool:
        return self.activations != "kept"


def plan_training_memory(
    module: Any, device: torch.device, optimizer_bytes: int, tokens: int | None, checkpointing: Checkpointing
) -> MemoryPlan:
    """optimizer_bytes: what gradients and optimiser will take; the weights are in memory already. tokens and
    checkpointing: what the user asked for; None and "auto" are chosen here."""
    width, room = module.get_input_embeddings().weight.element_size(), usable_memory(device) - optimizer_bytes
    return choose_micro_batch(
        read_shape(module), read_training_memory(module), width, device.type, room, tokens, checkpointing
    )


def choose_micro_batch(
    shape: Shape, training: Training, width: int, device_type: str, room: int, tokens: int | None,
    checkpointing: Checkpointing,
) -> MemoryPlan:  # fmt: skip
    """room: bytes that are free beside weights, gradients and optimiser."""
    room = max(0, round(MEMORY_SHARE * room))
    most, enough = MOST_TOKENS.get(device_type, 4096), ENOUGH_TOKENS.get(device_type, 1024)
    kept = token_activation_bytes(shape, width, training, "kept")
    recompute = room < kept * (tokens or enough) if checkpointing == "auto" else bool(checkpointing)
    offload = checkpointing == "offload" and device_type != "cpu"
    activations: Activations = "offloaded" if offload else "recomputed" if recompute else "kept"
    size = token_activation_bytes(shape, width, training, activations)
    if tokens is None:
        tokens = max(LEAST_TOKENS, min(most, room // size // 128 * 128))
    return MemoryPlan(tokens, activations, size)


class Retreating(Protocol):
    """What an engine has that can retreat."""

    device: torch.device
    optimizer: MasterAdamW | None
    calls: int  # forward_backward since the last optimiser step
    micro_batch_tokens: int
    retreats: int


def retry_with_less_memory(engine: Retreating, compute: Callable[[], Result]) -> Result:
    """Calls `compute`, and if memory runs out, once more from the start with half the tokens in a micro-batch.
    Gradients do not depend on micro-batches, so the result is the same. Gradients of earlier calls are kept."""
    optimizer = engine.optimizer
    held = optimizer.held_grads() if optimizer is not None and engine.calls else None
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or engine.micro_batch_tokens < 2 * LEAST_TOKENS:
                raise
            reason = str(error).split(". ")[0]
        # outside of `except`, whose traceback would hold on to the tensors of the failed call
        if optimizer is not None:
            optimizer.restore_grads(held)
        engine.micro_batch_tokens //= 2
        engine.retreats += 1
        log.warning("out of memory (%s): going on with micro-batches of %d tokens", reason, engine.micro_batch_tokens)
        gc.collect()
        if engine.device.type == "cuda":
            torch.cuda.empty_cache()

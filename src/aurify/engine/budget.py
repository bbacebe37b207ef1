"""How many tokens a micro-batch may have, and recomputing activations where they would not fit.

Saved activations decide it. Per token and decoder layer we count, in the dtype of the model,

    12 x hidden + 4.5 x intermediate     without checkpointing
    hidden                               with it, and the above once, for the layer that is recomputed
    2 x hidden, once                     instead of `hidden`, with layer inputs in host memory

The two factors fit what was counted on Llama and Qwen2 shapes with LoRA (58 KiB a token and layer for a 0.5B, 109 for
a 1B, in bf16). Other models differ; if memory runs out all the same, `retreat` halves the micro-batch."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from aurify.engine.executor import Result
from aurify.hardware import is_out_of_memory, usable_memory

if TYPE_CHECKING:
    from aurify.engine.optim import MasterAdamW

log = logging.getLogger("aurify")

HIDDEN_FACTOR, INTERMEDIATE_FACTOR = 12.0, 4.5
MEMORY_SHARE = 0.6  # of what is usable: the rest is for the head's chunks, gradients and fragmentation
MOST_TOKENS = {"cpu": 2048, "cuda": 16384}  # more brings nothing
ENOUGH_TOKENS = {"cpu": 1024, "cuda": 4096}  # with fewer, recomputing pays
LEAST_TOKENS = 256

Checkpointing = bool | Literal["auto", "offload"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    micro_batch_tokens: int
    checkpointing: bool
    token_bytes: int  # saved activations of one token


def plan_memory(
    module: Any, device: torch.device, optimizer_bytes: int, tokens: int | None, checkpointing: Checkpointing
) -> MemoryPlan:
    """optimizer_bytes: what gradients and optimiser will take; the weights are in memory already. tokens and
    checkpointing: what the user asked for; None and "auto" are chosen here."""
    config = module.config.get_text_config()
    width = next(module.parameters()).element_size()
    hidden = int(config.hidden_size)
    intermediate = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = int(config.num_hidden_layers)
    layer = round(width * (HIDDEN_FACTOR * hidden + INTERMEDIATE_FACTOR * intermediate))
    kept, recomputed = layers * layer, layers * width * hidden + layer
    room = max(0.0, MEMORY_SHARE * (usable_memory(device) - optimizer_bytes))
    most, enough = MOST_TOKENS.get(device.type, 4096), ENOUGH_TOKENS.get(device.type, 1024)
    recompute = room < kept * (tokens or enough) if checkpointing == "auto" else bool(checkpointing)
    if checkpointing == "offload" and device.type != "cpu":
        recomputed = 2 * width * hidden + layer
    token_bytes = recomputed if recompute else kept
    if tokens is None:
        tokens = max(LEAST_TOKENS, min(most, int(room / token_bytes) // 128 * 128))
    return MemoryPlan(tokens, recompute, token_bytes)


class Retreating(Protocol):
    """What an engine has that can retreat."""

    device: torch.device
    optimizer: MasterAdamW | None
    calls: int  # forward_backward since the last optimiser step
    micro_batch_tokens: int
    retreats: int


def retreat(engine: Retreating, compute: Callable[[], Result]) -> Result:
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

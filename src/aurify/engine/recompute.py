"""Recomputing activations in backward instead of keeping them (arXiv 1604.06174)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aurify.engine.adapter import Adapter

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers whose activations are recomputed: those that transformers marks for it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def recompute_layers(module: nn.Module, adapter: Adapter | None) -> bool:
    """Makes each decoder layer run again in backward. False if no layer is marked for it.

    transformers' own switch needs the module in training mode, which also turns on the model's dropout, for a sampler
    in another thread as well. Here the grad mode decides: without gradients a layer runs as it is."""
    layers = decoder_layers(module)
    dropout = adapter is not None and adapter.dropout > 0

    def contexts() -> Contexts:
        """Backward runs a layer with the adapter's mode of forward. On a GPU it has a thread of its own."""
        return nullcontext(), nullcontext() if adapter is None else adapter.as_now()

    def recomputed(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=dropout, context_fn=contexts, **kwargs
            )

        return run

    for layer in layers:
        layer.forward = recomputed(layer.forward)
    return bool(layers)

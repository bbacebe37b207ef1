"""Recomputing activations in backward instead of keeping them (arXiv 1604.06174). Layer inputs, which are kept, may
wait in host memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from aurify.engine.adapter import Adapter
from aurify.engine.offload import HostStore

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers whose activations are recomputed: those that transformers marks for it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def recompute_layers(module: nn.Module, adapter: Adapter | None, store: HostStore | None = None) -> bool:
    """Makes each decoder layer run again in backward. False if no layer is marked for it. store: keeps their inputs.

    transformers' own switch needs the module in training mode, which also turns on the model's dropout, for a sampler
    in another thread as well. Here the grad mode decides: without gradients a layer runs as it is."""
    layers = decoder_layers(module)
    dropout = adapter is not None and adapter.dropout > 0

    def contexts() -> Contexts:
        """Backward runs a layer with the adapter's mode of forward. On a GPU it has a thread of its own."""
        return nullcontext(), nullcontext() if adapter is None else adapter.as_now()

    def recomputed(forward: Any, first: bool) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            again = partial(checkpoint, use_reentrant=False, preserve_rng_state=dropout, context_fn=contexts)
            if store is None:
                return again(forward, *args, **kwargs)
            if first:
                store.last = None
            with saved_tensors_hooks(store.park, store.fetch):  # around what torch saves of a layer: `args`
                return again(forward, *args, **kwargs)

        return run

    for layer in layers:
        layer.forward = recomputed(layer.forward, layer is layers[0])
    return bool(layers)

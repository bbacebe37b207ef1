"""Attention over packed rows, registered with transformers as the implementation "aurify".

A transformers model computes its projections and rotary positions as always and then calls `attend` here with a
`Layout` that the caller passed as the keyword argument `layout`. The layout knows who sees whom: `Forest` for
packed rows (training, prefill), and the sampler's cache for decoding. So no model code is touched, and no [tokens,
tokens] mask is ever made: a row is cut into blocks of queries, and each block gathers just the keys that one of its
queries sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from aurify.engine.packing import Row

IMPLEMENTATION = "aurify"
BLOCK = 128  # queries in a block; a branch up to twice as long stays whole


class Layout(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """query [batch, heads, queries, head_dim], key and value [batch, kv_heads, queries, head_dim] -> like query"""
        ...


class Unsupported(NotImplementedError):
    """This model's attention does something that the fast path does not: the engine falls back to plain rows."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls; shapes as in `Layout.attend`, result [batch, queries, heads, head_dim]."""
    if layout is None:
        raise Unsupported(f"{type(module).__name__} does not hand keyword arguments down to its attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise Unsupported(f"{type(module).__name__} uses {name!r} in its attention")
    if not getattr(module, "is_causal", True) or dropout:
        raise Unsupported(f"{type(module).__name__} is not causal or drops attention weights")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or getattr(module, "sliding_window", None)
    return layout.attend(int(module.layer_idx), query, key, value, scale, window).transpose(1, 2), None  # type: ignore[arg-type]


AttentionInterface.register(IMPLEMENTATION, attend)


@dataclass(frozen=True, slots=True)
class Block:
    num_queries: int
    num_keys: int
    mask: Tensor  # [num_queries, num_keys] 0 or -inf


class Forest:
    """The one rule of visibility over a packed row: `j <= i < end[j]`, and for sliding-window layers also
    `position[i] - position[j] < window`, on logical positions."""

    def __init__(self, row: Row, device: torch.device, dtype: torch.dtype) -> None:
        self.row, self.device, self.dtype = row, device, dtype
        self.sizes = block_sizes(row)
        self.plans: dict[int | None, tuple[Tensor, list[Block]]] = {}  # by window: one for all layers of a kind
        self.flex_masks: dict[int | None, Any] = {}

    def plan(self, window: int | None) -> tuple[Tensor, list[Block]]:
        """Indices of the gathered keys of all blocks, one after the other, and the blocks."""
        if window not in self.plans:
            row, gathered, blocks, start = self.row, [], [], 0
            for size in self.sizes:
                stop = start + size
                keys = np.flatnonzero(row.end[:stop] > start)
                queries = np.arange(start, stop)[:, None]
                visible = (keys[None] <= queries) & (queries < row.end[keys][None])
                if window is not None:
                    visible &= row.positions[queries] - row.positions[keys][None] < window
                    seen = visible.any(0)
                    keys, visible = keys[seen], visible[:, seen]
                mask = torch.zeros(visible.shape, dtype=self.dtype)
                mask.masked_fill_(torch.from_numpy(~visible), float("-inf"))
                gathered.append(keys)
                blocks.append(Block(size, len(keys), mask.to(self.device)))
                start = stop
            self.plans[window] = torch.from_numpy(np.concatenate(gathered)).to(self.device), blocks
        return self.plans[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        if self.device.type == "cuda":
            return self.flex(query, key, value, scale, window)
        gathered, blocks = self.plan(window)
        # tokens first: gathering rows, and adding their gradients back, then moves contiguous memory
        keys = key[0].transpose(0, 1).index_select(0, gathered).split([block.num_keys for block in blocks])
        values = value[0].transpose(0, 1).index_select(0, gathered).split([block.num_keys for block in blocks])
        queries = query.split([block.num_queries for block in blocks], dim=2)
        gqa = query.shape[1] != key.shape[1]
        outputs = [
            F.scaled_dot_product_attention(
                q, k.transpose(0, 1)[None], v.transpose(0, 1)[None], block.mask, scale=scale, enable_gqa=gqa
            )
            for q, k, v, block in zip(queries, keys, values, blocks, strict=True)
        ]
        return torch.cat(outputs, dim=2)

    def flex(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """The same rule as a FlexAttention block mask: compiled, and blocks that nobody sees cost nothing."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self.flex_masks:
            end = torch.from_numpy(self.row.end).to(self.device)
            positions = torch.from_numpy(self.row.positions).to(self.device)

            def visible(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
                seen = (j <= i) & (i < end[j])
                return seen if window is None else seen & (positions[i] - positions[j] < window)

            size = len(self.row.tokens)
            self.flex_masks[window] = create_block_mask(visible, None, None, size, size, device=str(self.device))
        mask, gqa = self.flex_masks[window], query.shape[1] != key.shape[1]
        result = compiled_flex_attention()(query, key, value, block_mask=mask, scale=scale, enable_gqa=gqa)
        return result


_compiled: list[Any] = []


def compiled_flex_attention() -> Any:
    if not _compiled:
        from torch.nn.attention.flex_attention import flex_attention

        # rows differ in length at every step: dynamic shapes, or each would compile anew
        _compiled.append(torch.compile(flex_attention, dynamic=True))
    return _compiled[0]


def block_sizes(row: Row) -> list[int]:
    """Cuts a row into blocks of BLOCK to 2 x BLOCK queries, where a branch begins if one does: then few keys are
    gathered."""
    total = len(row.tokens)
    forks = np.flatnonzero(row.parent != np.arange(total) - 1)
    sizes, start = [], 0
    while start < total:
        nearby = forks[(forks >= start + BLOCK) & (forks <= start + 2 * BLOCK)]
        if len(nearby):
            stop = int(nearby[0])
        elif total - start <= 2 * BLOCK:
            stop = total
        else:
            stop = start + BLOCK
        sizes.append(stop - start)
        start = stop
    return sizes

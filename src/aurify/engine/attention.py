"""Attention over packed rows, registered with transformers as the implementation "aurify".

A transformers model computes its projections and rotary positions as always and then calls `attend` here with a
`Layout` that the caller passed as the keyword argument `layout`. The layout knows who sees whom: `Forest` for
packed rows (training, prefill), and the sampler's cache for decoding. So no model code is touched.

`Forest` has three paths, which the engine tries in the order of LADDERS (see forward.py and check.py):

    blocks   CPU: blocks of queries with the keys that they see (cpu/gathered.py)
    flex     GPU: FlexAttention, compiled; blocks that nobody sees cost nothing
    dense    anywhere: one [nodes, nodes] mask and PyTorch's own attention

If none of them works, rows are "plain": one padded row for each sequence, by the model's own attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from aurify.engine.cpu.gathered import Gathered, gather_key_blocks, gathered_attention
from aurify.engine.packing import Row
from aurify.engine.upload import upload_arrays

IMPLEMENTATION = "aurify"
FLEX_BLOCK = 128  # queries and keys in a block of FlexAttention's mask
LEAST_LENGTH = 256  # of a padded row; for a mask of a single block the compiler would make another graph
LENGTH_STEPS = ((4096, 128), (1 << 62, 512))  # up to a length, rows are padded to multiples of a step
RECOMPILES = 32  # FlexAttention compiles anew for a head size, a dtype, a window, with gradients; never for a length

Path = Literal["blocks", "flex", "dense", "plain"]
LADDERS: dict[str, tuple[Path, ...]] = {"cpu": ("blocks", "dense", "plain"), "cuda": ("flex", "dense", "plain")}


class Layout(Protocol):
    numbered: bool  # whether it must know which layer calls, as a cache does

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """query [batch, heads, queries, head_dim], key and value [batch, kv_heads, queries, head_dim] -> like query"""
        ...


class Unsupported(NotImplementedError):
    """This model's attention does something that packed rows cannot do: the engine takes plain rows."""


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
    # a compiled layer would be compiled again for every number that it reads here
    layer = int(module.layer_idx) if layout.numbered else -1  # type: ignore[arg-type]
    return layout.attend(layer, query, key, value, scale, window).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, attend)


class Forest:
    """The one rule of visibility over a packed row: `j <= i < end[j]`, and for sliding-window layers also
    `position[i] - position[j] < window`, on logical positions.

    Layers with the same window share a mask, which is made when the first of them asks."""

    numbered = False

    def __init__(self, row: Row, device: torch.device, dtype: torch.dtype, path: Path) -> None:
        self.row, self.device, self.dtype = row, device, dtype
        self.lay_out(path)

    def lay_out(self, path: Path) -> None:
        """Prepares the row for another path."""
        self.path = path
        num = len(self.row.tokens)
        self.length = padded_row_length(num) if path == "flex" or self.device.type == "cuda" else num
        # each node of the padding is a tree of its own: it sees only itself, so nothing is divided by zero
        padding = np.arange(num, self.length)
        self.end = np.concatenate([self.row.end, padding + 1])
        self.depths = np.concatenate([self.row.positions, np.zeros_like(padding)])
        tokens = np.concatenate([self.row.tokens, np.zeros_like(padding)])
        self.tokens, self.positions, self.ends = upload_arrays(
            [tokens[None], self.depths[None], self.end.astype(np.int32)], self.device
        )
        self.masks: dict[int | None, Any] = {}  # by window

    def prepare(self, windows: Iterable[int | None]) -> None:
        """Makes the masks for these windows now, since a compiled layer cannot."""
        for window in windows:
            self.mask(window)

    def mask(self, window: int | None) -> Any:
        if window not in self.masks:
            if self.path == "blocks":
                self.masks[window] = gather_key_blocks(self.row, window, self.dtype, self.device)
            elif self.path == "flex":
                self.masks[window] = flex_mask(self, window)
            else:
                self.masks[window] = dense_mask(self.ends, self.positions[0], window, self.dtype)
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        mask = self.mask(window)
        if self.path == "blocks":
            gathered: Gathered = mask
            return gathered_attention(query, key, value, scale, gathered)
        if self.path == "flex":
            gqa = query.shape[1] != key.shape[1]
            # the usual scale is a constant of the graph; any other one is an input, for which it is traced again
            usual = scale == query.shape[-1] ** -0.5
            return flex_kernel()(query, key, value, block_mask=mask, scale=None if usual else scale, enable_gqa=gqa)
        return dense_attention(query, key, value, scale, mask)


def padded_row_length(num: int) -> int:
    """Few different lengths, so that kernels, masks and the allocator's blocks are used again. Below 128 queries
    FlexAttention would take another kernel than the one that was checked."""
    step = next(step for limit, step in LENGTH_STEPS if num <= limit)
    return max(LEAST_LENGTH, -(-num // step) * step)


def dense_mask(ends: Tensor, positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, 1, nodes, nodes] 0 or -inf"""
    nodes = torch.arange(len(ends), device=ends.device)
    visible = (nodes[None] <= nodes[:, None]) & (nodes[:, None] < ends[None])
    if window is not None:
        visible &= positions[:, None] - positions[None] < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=ends.device)
    return mask.masked_fill_(~visible, float("-inf"))[None, None]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor) -> Tensor:
    if query.device.type != "cuda":
        gqa = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=gqa)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The memory-efficient kernel cannot group heads, and other kernels hold all scores at once. cuDNN makes a plan for
    # each new shape.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)


def visible_blocks(end: np.ndarray, positions: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of keys a block of queries sees in part, and which in full (every query sees every key).

    end, positions [length], a multiple of FLEX_BLOCK -> two [blocks, blocks] bool, exclusive. Takes time proportional
    to blocks x length; asking for each pair of nodes would take longer than a layer."""
    length = len(end)
    num = length // FLEX_BLOCK
    before = np.tri(num, k=-1, dtype=bool)  # queries come after keys; the diagonal is added at the end
    last, first = end.reshape(num, -1).max(1), end.reshape(num, -1).min(1)
    starts = np.arange(num)[:, None] * FLEX_BLOCK
    full = before & (first[None] >= starts + FLEX_BLOCK)
    if window is None:
        some = before & (last[None] > starts)
    else:
        depths = positions.reshape(num, -1)
        full &= depths.max(1)[:, None] - depths.min(1)[None] < window
        some = np.zeros_like(before)
        for block in range(1, num):
            start = block * FLEX_BLOCK
            # the queries of this block that see key j are its first ones: the one with the least depth decides
            least = np.minimum.accumulate(depths[block])
            reach = np.minimum(end[:start] - start, FLEX_BLOCK)
            seen = (reach > 0) & (least[np.maximum(reach, 1) - 1] - positions[:start] < window)
            some[block, :block] = seen.reshape(block, -1).any(1)
    np.fill_diagonal(some, True)  # every node sees itself
    return some & ~full, full


def flex_mask(forest: Forest, window: int | None) -> Any:
    """The rule of visibility as a mask for FlexAttention."""
    from torch.nn.attention.flex_attention import BlockMask

    arrays = [forest.end.astype(np.int32), forest.depths.astype(np.int32)]
    for blocks in visible_blocks(forest.end, forest.depths, window):
        arrays.append(blocks.sum(1, dtype=np.int32)[None, None])
        arrays.append(np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)[None, None])
    end, positions, num_partial, partial, num_full, full = upload_arrays(arrays, forest.device)

    def visible(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < end[j])

    def visible_in_window(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < end[j]) & (positions[i] - positions[j] < window)  # type: ignore[operator]

    rule = visible if window is None else visible_in_window
    mask = BlockMask.from_kv_blocks(num_partial, partial, num_full, full, BLOCK_SIZE=FLEX_BLOCK, mask_mod=rule)
    for tensor in (end, positions, *(each for each in vars(mask).values() if isinstance(each, Tensor))):
        for dim, size in enumerate(tensor.shape):
            if size > 1:  # else the graph of the first row would fit no other
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return mask


_flex: list[Callable[..., Tensor]] = []


def flex_kernel() -> Callable[..., Tensor]:
    if torch.compiler.is_compiling():  # a compiled layer takes the kernel in
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention
    if not _flex:
        _flex.append(compile_flex())
    return _flex[0]


def compile_flex(backend: Any = "inductor") -> Callable[..., Tensor]:
    """Compiled once for rows of every length. With fullgraph, reaching the limit of recompiles is an error, and the
    engine takes the next path. Without it, the uncompiled function would hold all scores at once and only warn."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, RECOMPILES)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)
    return compiled

"""Attention over a packed row on a CPU, by blocks of gathered keys.

There is no [tokens, tokens] mask: the row is cut into blocks of queries, and each block gathers just the keys that one
of its queries sees. A row of many short branches then costs little more than its branches alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.engine.packing import Row

BLOCK = 128  # queries in a block; a branch up to twice as long stays whole


@dataclass(frozen=True, slots=True)
class QueryBlock:
    num_queries: int
    num_keys: int
    mask: Tensor  # [num_queries, num_keys] 0 or -inf


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the layers of one kind (with the same window) need to know of a row."""

    keys: Tensor  # indices of the keys of all blocks, one block after the other
    blocks: list[QueryBlock]


def gather_key_blocks(row: Row, window: int | None, dtype: torch.dtype, device: torch.device) -> Gathered:
    gathered, blocks, start = [], [], 0
    for size in attention_block_sizes(row):
        stop = start + size
        keys = np.flatnonzero(row.end[:stop] > start)
        queries = np.arange(start, stop)[:, None]
        visible = (keys[None] <= queries) & (queries < row.end[keys][None])
        if window is not None:
            visible &= row.positions[queries] - row.positions[keys][None] < window
            seen = visible.any(0)
            keys, visible = keys[seen], visible[:, seen]
        mask = torch.zeros(visible.shape, dtype=dtype)
        mask.masked_fill_(torch.from_numpy(~visible), float("-inf"))
        gathered.append(keys)
        blocks.append(QueryBlock(size, len(keys), mask.to(device)))
        start = stop
    return Gathered(torch.from_numpy(np.concatenate(gathered)).to(device), blocks)


def gathered_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, gathered: Gathered) -> Tensor:
    """query [1, heads, nodes, head_dim], key and value [1, kv_heads, nodes, head_dim] -> like query"""
    blocks = gathered.blocks
    # tokens come first, so that gathering rows, and adding their gradients back, moves contiguous memory
    keys = key[0].transpose(0, 1).index_select(0, gathered.keys).split([block.num_keys for block in blocks])
    values = value[0].transpose(0, 1).index_select(0, gathered.keys).split([block.num_keys for block in blocks])
    queries = query.split([block.num_queries for block in blocks], dim=2)
    gqa = query.shape[1] != key.shape[1]
    outputs = [
        F.scaled_dot_product_attention(
            q, k.transpose(0, 1)[None], v.transpose(0, 1)[None], block.mask, scale=scale, enable_gqa=gqa
        )
        for q, k, v, block in zip(queries, keys, values, blocks, strict=True)
    ]
    return torch.cat(outputs, dim=2)


def count_gathered_rows(row: Row) -> tuple[int, int]:
    """Keys that the blocks of a row gather, and entries of their masks, without a window."""
    keys, entries, start = 0, 0, 0
    for size in attention_block_sizes(row):
        seen = int(np.count_nonzero(row.end[: start + size] > start))
        keys, entries, start = keys + seen, entries + size * seen, start + size
    return keys, entries


def attention_block_sizes(row: Row) -> list[int]:
    """Cuts a row into blocks of BLOCK to 2 x BLOCK queries, at the beginning of a branch if there is one, so that few
    keys are gathered."""
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

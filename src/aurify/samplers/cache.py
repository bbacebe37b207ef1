"""The key-value cache of the in-process sampler: slots of one sequence each, preallocated, always the first
`active` ones in use."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.engine.attention import Forest, Path
from aurify.engine.packing import Row

ROUND = 8  # lengths are rounded up: cache views keep their shape for a while


class SlotCache:
    """Keys and values of up to `max_slots` sequences."""

    def __init__(self, max_slots: int, num_kv_heads: int, device: torch.device, dtype: torch.dtype) -> None:
        self.max_slots, self.num_kv_heads = max_slots, num_kv_heads
        self.device, self.dtype = device, dtype
        self.keys: list[Tensor] = []  # [layers] of [slots, kv_heads, capacity, head_dim]
        self.values: list[Tensor] = []
        self.capacity = 0
        self.growing = threading.Lock()  # cores that prefill side by side meet a layer for the first time together

    def reserve(self, capacity: int) -> None:
        """Room for sequences of `capacity` tokens; at least doubles, so that growing costs little in the long run."""
        if capacity <= self.capacity:
            return
        capacity = -(-max(capacity, 2 * self.capacity) // ROUND) * ROUND
        self.keys = [F.pad(layer, (0, 0, 0, capacity - self.capacity)) for layer in self.keys]
        self.values = [F.pad(layer, (0, 0, 0, capacity - self.capacity)) for layer in self.values]
        self.capacity = capacity

    def layer(self, index: int, head_dims: tuple[int, int]) -> tuple[Tensor, Tensor]:
        with self.growing:
            while len(self.keys) <= index:
                shape = (self.max_slots, self.num_kv_heads, self.capacity)
                self.keys.append(torch.zeros(*shape, head_dims[0], device=self.device, dtype=self.dtype))
                self.values.append(torch.zeros(*shape, head_dims[1], device=self.device, dtype=self.dtype))
        return self.keys[index], self.values[index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies a sequence into a slot that became free, so that the slots in use stay the first ones."""
        for layer in (*self.keys, *self.values):
            layer[target, :, :length] = layer[source, :, :length]


class Decoding:
    """One decoding step, as a `Layout`: slot `first + k` appends a token at positions[k] and sees everything up to
    it."""

    numbered = True

    def __init__(self, cache: SlotCache, positions: list[int], first: int = 0) -> None:
        self.cache, device = cache, cache.device
        self.positions = torch.tensor(positions, device=device)
        self.slots = torch.arange(first, first + len(positions), device=device)
        self.used = slice(first, first + len(positions))
        self.length = min(-(-(max(positions) + 1) // ROUND) * ROUND, cache.capacity)
        self.masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """[slots, 1, 1, length] 0 or -inf"""
        if window not in self.masks:
            keys = torch.arange(self.length, device=self.cache.device)[None]
            hidden = keys > self.positions[:, None]
            if window is not None:
                hidden |= keys <= self.positions[:, None] - window
            mask = torch.zeros(hidden.shape, device=self.cache.device, dtype=self.cache.dtype)
            self.masks[window] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        keys, values = self.cache.layer(layer, (key.shape[-1], value.shape[-1]))
        keys[self.slots, :, self.positions] = key[:, :, 0]
        values[self.slots, :, self.positions] = value[:, :, 0]
        num, heads, _, dim = query.shape
        # the heads that share a key head become the queries of one attention: keys are read once for all of them
        grouped = query.view(num, self.cache.num_kv_heads, heads // self.cache.num_kv_heads, dim)
        keys, values = keys[self.used, :, : self.length], values[self.used, :, : self.length]
        if self.cache.device.type == "cpu":  # for one query a sequence, two products beat the fused kernel by a third
            weights = torch.matmul(grouped * scale, keys.transpose(2, 3)).add_(self.mask(window))
            output = torch.matmul(weights.softmax(-1), values)
        else:
            output = F.scaled_dot_product_attention(grouped, keys, values, self.mask(window), scale=scale)
        return output.view(num, heads, 1, -1)


class Prefill(Forest):
    """A packed row of prompts whose keys and values also go into the cache; prompt k fills all slots in `slots[k]`."""

    numbered = True

    def __init__(self, row: Row, cache: SlotCache, slots: list[list[int]], path: Path) -> None:
        super().__init__(row, cache.device, cache.dtype, path)
        self.cache = cache
        self.targets = [
            (torch.tensor(group, device=cache.device), torch.from_numpy(path).to(cache.device))
            for group, path in zip(slots, row.nodes, strict=True)
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        keys, values = self.cache.layer(layer, (key.shape[-1], value.shape[-1]))
        for slots, path in self.targets:
            keys[slots, :, : len(path)] = key[0, :, path]
            values[slots, :, : len(path)] = value[0, :, path]
        return super().attend(layer, query, key, value, scale, window)

"""The key-value cache of the in-process sampler. Each slot holds one sequence, and the first slots are in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.engine.attention import Forest, Path, dense_attention
from aurify.engine.packing import Row
from aurify.engine.upload import upload_arrays
from aurify.hardware import usable_memory

ROUND = 64  # capacities are multiples of it
CACHE_SHARE = 1 / 2  # of the memory that is usable at first use
KEPT_SHARE = 1 / 20  # of a card's memory: a cache up to this size stays between requests, with its graphs

Shape = tuple[int, int, int]  # of a layer: key-value heads, dimensions of a key, of a value


def round_up_cache(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def default_cache_bytes(device: torch.device) -> int:
    """Bytes for keys and values. On a CPU this is a bound: memory that no token has reached yet is not taken."""
    return int(CACHE_SHARE * usable_memory(device))


class SlotCache:
    """Keys and values. shapes: one entry for each layer that attends, by its index in the model."""

    def __init__(self, shapes: dict[int, Shape], device: torch.device, dtype: torch.dtype) -> None:
        self.shapes, self.device, self.dtype = shapes, device, dtype
        self.token_bytes = sum(heads * (key + value) for heads, key, value in shapes.values()) * dtype.itemsize
        self.keys: dict[int, Tensor] = {}  # by layer: [slots, kv_heads, capacity, head_dim]
        self.values: dict[int, Tensor] = {}
        self.num_slots = self.capacity = self.ready = 0

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.capacity * self.token_bytes

    def resize(self, num_slots: int, capacity: int) -> bool:
        """Gives the cache another shape and keeps its contents. False if it has that shape already."""
        if (num_slots, capacity) == (self.num_slots, self.capacity):
            return False
        kept, ready = min(num_slots, self.num_slots), min(self.ready, capacity)
        for index, (heads, *dims) in self.shapes.items():  # one layer at a time: only one is held twice
            for layers, dim in zip((self.keys, self.values), dims, strict=True):
                new = torch.empty(num_slots, heads, capacity, dim, device=self.device, dtype=self.dtype)
                new[:, :, :ready].zero_()
                if kept:
                    new[:kept, :, :ready] = layers[index][:kept, :, :ready]
                layers[index] = new
        self.num_slots, self.capacity, self.ready = num_slots, capacity, ready
        return True

    def extend(self, length: int) -> None:
        """Zeroes positions up to `length` before they are read: a masked key must still be a number."""
        length = min(round_up_cache(length, ROUND), self.capacity)
        if length > self.ready:
            for layer in (*self.keys.values(), *self.values.values()):
                layer[:, :, self.ready : length].zero_()
            self.ready = length

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copies sequences into free slots, so that the slots in use stay the first ones."""
        source, target = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        for layer in (*self.keys.values(), *self.values.values()):
            layer[target, :, :length] = layer[source, :, :length]

    def copy_out(self, slot: int, length: int) -> Tensor:
        """The first keys and values of a sequence, of all layers, in one piece of memory."""
        layers = (*self.keys.values(), *self.values.values())
        return torch.cat([layer[slot, :, :length].flatten() for layer in layers])

    def copy_in(self, slot: int, length: int, copied: Tensor) -> None:
        """Puts the first `length` of what `copy_out` gave into a slot."""
        layers = (*self.keys.values(), *self.values.values())
        held = copied.numel() * self.dtype.itemsize // self.token_bytes
        sizes = [layer.shape[1] * held * layer.shape[3] for layer in layers]
        for layer, part in zip(layers, copied.split(sizes), strict=True):
            layer[slot, :, :length] = part.view(layer.shape[1], held, -1)[:, :length]

    def free(self) -> None:
        self.keys, self.values = {}, {}
        self.num_slots = self.capacity = self.ready = 0


class Decoding:
    """One decoding step, as a `Layout`: slot `first + k` appends a token at positions[k] and sees everything up to it.
    Nothing here depends on values on the device, so a CUDA graph can hold the step.

    length: of the keys that are read; all positions are below it."""

    numbered = True

    def __init__(self, cache: SlotCache, positions: Tensor, first: int, length: int) -> None:
        self.cache, self.positions, self.length = cache, positions, length
        self.used = slice(first, first + len(positions))
        self.slots = torch.arange(first, first + len(positions), device=cache.device)
        self.on_cpu = cache.device.type == "cpu"
        self.masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """[slots, 1, 1, length] 0 or -inf"""
        if window not in self.masks:
            keys = torch.arange(self.length, device=self.cache.device)[None]
            hidden = keys > self.positions[:, None]
            if window is not None:
                hidden |= keys <= self.positions[:, None] - window
            dtype = torch.float32 if self.on_cpu else self.cache.dtype
            mask = torch.zeros(hidden.shape, device=self.cache.device, dtype=dtype)
            self.masks[window] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slots, :, self.positions] = key[:, :, 0]
        values[self.slots, :, self.positions] = value[:, :, 0]
        num, heads, _, dim = query.shape
        # heads that share a key head become the queries of one attention, so keys are read once for all of them
        grouped = query.view(num, key.shape[1], heads // key.shape[1], dim)
        keys, values = keys[self.used, :, : self.length], values[self.used, :, : self.length]
        if self.on_cpu:
            # With one query for each sequence, two products beat the fused kernel. Like it, they keep scores in fp32:
            # rounded to bf16 they would double the error.
            scores = torch.matmul(grouped.float() * scale, keys.float().transpose(2, 3)).add_(self.mask(window))
            output = torch.matmul(scores.softmax(-1).to(values.dtype), values)
        else:
            output = F.scaled_dot_product_attention(grouped, keys, values, self.mask(window), scale=scale)
        return output.view(num, heads, 1, -1)


class Prefill(Forest):
    """A packed row of prompts that also fills the cache: the keys and values of prompt k go into all of `slots[k]`."""

    numbered = True

    def __init__(self, row: Row, cache: SlotCache, slots: Sequence[Sequence[int]], path: Path) -> None:
        super().__init__(row, cache.device, cache.dtype, path)
        self.cache = cache
        copies = [(slot, path) for group, path in zip(slots, row.nodes, strict=True) for slot in group]
        self.copied, self.into_slots, self.at_positions = (
            torch.from_numpy(np.concatenate(parts)).to(cache.device)
            for parts in (
                [path for _, path in copies],
                [np.full(len(path), slot) for slot, path in copies],
                [np.arange(len(path)) for _, path in copies],
            )
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        for cached, new in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            cached[self.into_slots, :, self.at_positions] = new[0].transpose(0, 1)[self.copied]
        return super().attend(layer, query, key, value, scale, window)


class Extension:
    """A row of what is new in sequences whose slots hold how they begin, as a `Layout`: new[k] goes on in slots[k] at
    position starts[k], and sees everything up to itself."""

    numbered = True

    def __init__(
        self, new: Sequence[Sequence[int]], cache: SlotCache, slots: Sequence[int], starts: Sequence[int]
    ) -> None:
        self.cache, self.sizes = cache, [len(tokens) for tokens in new]
        self.ranges = [(slot, start, start + size) for slot, start, size in zip(slots, starts, self.sizes, strict=True)]
        positions = [np.arange(start, stop) for _, start, stop in self.ranges]
        self.tokens, self.positions, self.into_slots = upload_arrays(
            [np.concatenate([*new])[None], np.concatenate(positions)[None], np.repeat(slots, self.sizes)], cache.device
        )
        self.masks: dict[int | None, list[Tensor]] = {}

    def mask(self, window: int | None) -> list[Tensor]:
        """For each sequence [1, 1, new tokens, tokens] 0 or -inf"""
        if window not in self.masks:
            self.masks[window] = []
            for _, start, stop in self.ranges:
                queries = torch.arange(start, stop, device=self.cache.device)[:, None]
                keys = torch.arange(stop, device=self.cache.device)
                hidden = keys > queries
                if window is not None:
                    hidden |= keys <= queries - window
                mask = torch.zeros(hidden.shape, device=self.cache.device, dtype=self.cache.dtype)
                self.masks[window].append(mask.masked_fill_(hidden, float("-inf"))[None, None])
        return self.masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.into_slots, :, self.positions[0]] = key[0].transpose(0, 1)
        values[self.into_slots, :, self.positions[0]] = value[0].transpose(0, 1)
        outputs = [
            dense_attention(each, keys[slot, None, :, :stop], values[slot, None, :, :stop], scale, mask)
            for each, mask, (slot, _, stop) in zip(
                query.split(self.sizes, dim=2), self.mask(window), self.ranges, strict=True
            )
        ]
        return torch.cat(outputs, dim=2)


class Probe:
    """A `Layout` for a single token, which finds out the shapes of a model's keys and values."""

    numbered = True

    def __init__(self) -> None:
        self.shapes: dict[int, Shape] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        self.shapes[layer] = key.shape[1], key.shape[-1], value.shape[-1]
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)  # it sees only itself

"""How a block of decoding steps is run: shared out among a CPU's cores, or replayed as CUDA graphs.

Both run the same step on the same state (`slots.py`, `cache.py`). On a CPU the host looks at each token. A GPU would
wait for the host each time, so it makes several steps before the host looks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch

from aurify.cores import Cores, Item, Result
from aurify.samplers.cache import round_up_cache
from aurify.samplers.slots import State, StepOptions

log = logging.getLogger("aurify")

PART = 16  # sequences in a part when all slots are in use
LEAST = 2  # sequences that a part needs for each part there is, since every part reads all weights

Decode = Callable[[int, int, int, StepOptions], None]  # first slot, stop, length of the keys, options: one step


def decode_batch_bucket(num: int) -> int:
    """1, 2, 4, 8, 16, 32, 64, then multiples of 32: few sizes, so few graphs."""
    return 1 << (num - 1).bit_length() if num <= 64 else round_up_cache(num, 32)


def decode_length_bucket(length: int) -> int:
    """Multiples of 256; above 2,048, four lengths between a power of two and the next."""
    return round_up_cache(length, max(256, (1 << length.bit_length()) // 8))


class StepExecutor(Protocol):
    parts: int  # of a prefill
    steps: int  # in a block

    def round_length(self, length: int) -> int:
        """How many keys a step reads."""
        ...

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]: ...

    def run(self, decode: Decode, state: State, num: int, length: int, options: StepOptions, steps: int) -> None:
        """`steps` steps for the sequences in the first `num` slots. state: of all slots that the cache has."""
        ...

    def forget(self) -> None:
        """Called when the cache has moved or is gone."""
        ...

    def close(self) -> None: ...


class CoresExecutor:
    steps = 1

    def __init__(self, max_batch: int) -> None:
        self.parts = max(1, min(torch.get_num_threads(), max_batch // PART))
        self.cores: Cores | None = None  # made when there is enough for several

    def round_length(self, length: int) -> int:
        return round_up_cache(length, 8)

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Each item on its own cores; a single item has all of them."""
        if len(items) == 1 or self.parts == 1:
            return [function(item) for item in items]
        if self.cores is None:
            self.cores = Cores(self.parts, "aurify-sample")
        return list(self.cores.map(torch.no_grad()(function), items))

    def run(self, decode: Decode, state: State, num: int, length: int, options: StepOptions, steps: int) -> None:
        parts = self.parts if num >= LEAST * self.parts**2 else 1
        bounds = list(pairwise(num * part // parts for part in range(parts + 1)))
        for _ in range(steps):
            self.map(lambda bound: decode(*bound, length, options), bounds)

    def forget(self) -> None:
        pass

    def close(self) -> None:
        if self.cores is not None:
            self.cores.close()


@dataclass(frozen=True, slots=True)
class Key:
    """What a graph is captured for."""

    batch: int
    length: int
    options: StepOptions


class GraphExecutor:
    """capture: turns a step into a function that repeats it. A parameter, so that tests can run the rest on a CPU."""

    parts = 1

    def __init__(self, capture: Callable[..., Callable[[], Any]] | None, steps: int = 8) -> None:
        self.capture, self.steps = capture, steps
        self.graphs: dict[Key, Callable[[], Any]] = {}
        self.pool: Any = None  # of memory, one for all graphs: only one of them runs at a time

    def round_length(self, length: int) -> int:
        return decode_length_bucket(length)

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        return [function(item) for item in items]

    def run(self, decode: Decode, state: State, num: int, length: int, options: StepOptions, steps: int) -> None:
        key = Key(min(decode_batch_bucket(num), state.positions.shape[0]), length, options)
        if key not in self.graphs and self.capture is not None:
            self._capture(key, decode, state)
        step = self.graphs.get(key) or self._step(key, decode)
        for _ in range(steps):
            step()

    def _step(self, key: Key, decode: Decode) -> Callable[[], None]:
        return lambda: decode(0, key.batch, key.length, key.options)

    def _capture(self, key: Key, decode: Decode, state: State) -> None:
        """Restores the state after capturing and the steps that warm up for it. What they put into the cache, the block
        will put there again."""
        assert self.capture is not None
        integers, numbers = state.integers.clone(), state.numbers.clone()
        if self.pool is None and state.integers.is_cuda:
            self.pool = torch.cuda.graph_pool_handle()
        try:
            self.graphs[key] = self.capture(self._step(key, decode), self.pool)
        except RuntimeError as reason:
            log.warning("decoding without CUDA graphs, which is slower: %s", str(reason).partition("\n")[0])
            self.capture = None
        finally:
            state.integers.copy_(integers)
            state.numbers.copy_(numbers)

    def forget(self) -> None:
        self.graphs.clear()
        self.pool = None

    def close(self) -> None:
        self.forget()


def capture_decode_graph(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads kernels and makes workspaces before the capture
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # other threads, such as one that trains, may use CUDA meanwhile
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step()
    return graph.replay

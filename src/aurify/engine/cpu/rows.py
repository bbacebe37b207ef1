"""Rows side by side, each on cores of its own.

Cores that share every product wait for each other after each. So a micro-batch is divided into as many rows as there
are cores, of equal cost (`engine/packing.py`), and each core computes one. Every row has gradients of its own until
they are added up in the order of the rows: the sum does not depend on which core was first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from aurify.cores import Cores
from aurify.engine.executor import Executor, Grads, Result
from aurify.engine.packing import PART_TOKENS, Row
from aurify.hardware import machine_memory

MEMORY_SHARE = 1 / 8  # of the machine's, that further gradients may take


def choose_row_executor(device: torch.device, parameters: Sequence[nn.Parameter], *, dropout: bool) -> Executor:
    """parameters: those that are trained."""
    most = most_abreast(device.type, sum(parameter.numel() for parameter in parameters), dropout=dropout)
    return SideBySide(most) if most > 1 else Executor()


def most_abreast(device_type: str, num_trained: int, *, dropout: bool) -> int:
    """Rows go side by side on a CPU with several cores, if the memory affords a set of gradients for each. Dropout
    draws from one generator, so its rows need a fixed order."""
    most, size = torch.get_num_threads(), 4 * num_trained
    if device_type != "cpu" or dropout or most < 2 or size * (most + 1) > MEMORY_SHARE * machine_memory():
        return 1
    return most


class SideBySide(Executor):
    def __init__(self, most: int) -> None:
        self.most = most  # rows at the same time
        self.cores: Cores | None = None  # made when there is enough to do for several

    def parts(self, max_tokens: int) -> int:
        return max(1, min(self.most, max_tokens // PART_TOKENS))

    def run(self, rows: Sequence[Row], function: Callable[[Row], Result], max_tokens: int) -> Iterator[Result]:
        parts = self.parts(max_tokens)
        for together, abreast in run_rows_side_by_side(rows, max_tokens, parts):
            if abreast < 2:  # with all cores
                yield from map(function, together)
                continue
            if self.cores is None:
                self.cores = Cores(parts, "aurify-train")
            # if all threads are busy, one more row waits for the first to be free
            yield from self.cores.map(function, together, window=abreast + (abreast == parts))

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter], max_tokens: int) -> Grads | None:
        if self.parts(max_tokens) == 1:
            return super().backward(loss, parameters, max_tokens)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def close(self) -> None:
        if self.cores is not None:
            self.cores.close()


def run_rows_side_by_side(rows: Sequence[Row], max_tokens: int, parts: int) -> Iterator[tuple[list[Row], int]]:
    """Rows in their order, and how many of them may be under way at once: `max_tokens` together. A row too large to
    share the machine runs alone."""
    for _, run in groupby(rows, lambda row: 2 * len(row.tokens) <= max_tokens):
        together = list(run)
        yield together, min(parts, len(together), max_tokens // max(len(row.tokens) for row in together))

"""Rows side by side, each on cores of its own.

Cores that share every product wait for each other after each. So a micro-batch is divided into as many rows as there
are cores, of equal cost (`engine/division.py`), and each core computes one. Every row has gradients of its own until
they are added up in the order of the rows: the sum does not depend on which core was first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from aurify.cores import Cores, affordable
from aurify.engine.executor import Executor, Grads, Result
from aurify.engine.packing import PART_TOKENS, Row


class SideBySide(Executor):
    def __init__(self, most: int) -> None:
        self.most = most  # rows at the same time
        self.cores: Cores | None = None  # made when there is enough to do for several

    @staticmethod
    def choose(parameters: Sequence[nn.Parameter]) -> SideBySide | None:
        """None where one core is all there is, or where a second set of gradients takes too much memory."""
        most = torch.get_num_threads()
        size = sum(4 * parameter.numel() for parameter in parameters)
        return SideBySide(most) if most > 1 and affordable(size * (most + 1)) else None

    def parts(self, max_tokens: int) -> int:
        return max(1, min(self.most, max_tokens // PART_TOKENS))

    def run(
        self, rows: Sequence[Row], function: Callable[[Row], Result], max_tokens: int, parts: int
    ) -> Iterator[Result]:
        for together, abreast in side_by_side(rows, max_tokens, parts):
            if abreast < 2:  # with all cores
                yield from map(function, together)
                continue
            if self.cores is None:
                self.cores = Cores(parts, "aurify-train")
            # where all threads are busy, one row more waits for the first to be free
            yield from self.cores.map(function, together, window=abreast + (abreast == parts))

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter], parts: int) -> Grads | None:
        if parts == 1:
            return super().backward(loss, parameters, parts)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def close(self) -> None:
        if self.cores is not None:
            self.cores.close()


def side_by_side(rows: Sequence[Row], max_tokens: int, parts: int) -> Iterator[tuple[list[Row], int]]:
    """Rows in their order, and how many of them may be under way at once: `max_tokens` together. A row too large to
    share the machine runs alone."""
    for _, run in groupby(rows, lambda row: 2 * len(row.tokens) <= max_tokens):
        together = list(run)
        yield together, min(parts, len(together), max_tokens // max(len(row.tokens) for row in together))

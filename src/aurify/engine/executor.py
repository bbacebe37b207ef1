"""How the rows of one call are computed: one after the other, each with the whole device. `engine/cpu/rows.py` has a
faster way for CPUs with several cores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aurify.engine.packing import Row

Result = TypeVar("Result")
Grads = Sequence[Tensor | None]  # one for each parameter


class Executor:
    """One row after the other. max_tokens: of a micro-batch."""

    def parts(self, max_tokens: int) -> int:
        """How many rows share a micro-batch."""
        return 1

    def run(self, rows: Sequence[Row], function: Callable[[Row], Result], max_tokens: int) -> Iterator[Result]:
        """What `function` gives for each row, in their order."""
        return map(function, rows)

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter], max_tokens: int) -> Grads | None:
        """The gradients of `parameters`, or None if they were added to the parameters' own."""
        loss.backward()
        return None

    def close(self) -> None:
        pass


def sum_loss_terms(terms: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The sums over rows of what each row's loss gave. They are read from the device once."""
    names = sorted({name for values in terms for name in values})
    if not names:
        return {}
    flat = [values[name] for values in terms for name in names if name in values]
    device = next((value.device for value in flat if isinstance(value, Tensor)), torch.device("cpu"))
    read = iter(torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in flat]).tolist())
    sums: dict[str, float] = defaultdict(float)
    for values in terms:
        for name in names:
            if name in values:
                sums[name] += next(read)
    return sums

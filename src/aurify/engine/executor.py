"""How the rows of one call are computed. The plain way is one after the other, each with the whole device;
`engine/cpu/rows.py` knows a faster one for CPUs with several cores."""

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
    """One row after the other."""

    def parts(self, max_tokens: int) -> int:
        """How many rows share a micro-batch of `max_tokens`."""
        return 1

    def run(
        self, rows: Sequence[Row], function: Callable[[Row], Result], max_tokens: int, parts: int
    ) -> Iterator[Result]:
        """What `function` gives for each row, in their order."""
        return map(function, rows)

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter], parts: int) -> Grads | None:
        """The gradients of `parameters`, or None where they were added to the parameters' own."""
        loss.backward()
        return None

    def close(self) -> None:
        pass


def choose_executor(device: torch.device, parameters: Sequence[nn.Parameter], *, dropout: bool) -> Executor:
    """parameters: those that are trained. Dropout draws from one generator, so its rows need a fixed order."""
    if device.type != "cpu" or dropout:
        return Executor()
    from aurify.engine.cpu.rows import SideBySide

    return SideBySide.choose(parameters) or Executor()


def add_up(terms: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The sums over rows of what each row's loss gave; read from the device once."""
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

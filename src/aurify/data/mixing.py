"""Weighted mixtures of sources. Which row is the n-th of a run follows from n alone, so a resumed run needs to know
nothing but the number of its step.

The source that is furthest behind its share gives the next row, so every stretch of a run has the proportions that the
weights say; a random draw would have them only on average. Within a source the order is shuffled by the seed, anew for
every pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

By = Literal["rows", "tokens"]
Stop = Literal["exhaust", "cycle"]


@dataclass
class Mixture:
    """sizes: for each source the number of tokens of each of its rows, in the order of the flat list of all rows."""

    sizes: Sequence[Sequence[int]]
    weights: Sequence[float]
    by: By = "rows"
    stop: Stop = "exhaust"  # an epoch ends when the first source is used up, or (cycle) when the last one is
    seed: int = 0
    drawn: list[int] = field(default_factory=list, repr=False)  # so far: flat indices

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.weights) and all(self.sizes) and all(weight > 0 for weight in self.weights)
        total = sum(self.weights)
        self.shares = [weight / total for weight in self.weights]
        self.offsets = [sum(map(len, self.sizes[:k])) for k in range(len(self.sizes))]
        self.taken = [0] * len(self.sizes)  # rows of each source
        self.spent = [0] * len(self.sizes)  # in the unit that is weighed
        self.orders: dict[int, tuple[int, list[int]]] = {}  # source -> pass, and its order

    def at(self, number: int) -> int:
        """The n-th row of a run, as an index of the flat list of all rows."""
        while len(self.drawn) <= number:
            self.drawn.append(self.draw())
        return self.drawn[number]

    def draw(self) -> int:
        total = sum(self.spent)
        source = max(
            range(len(self.sizes)), key=lambda k: (self.shares[k] * (total + 1) - self.spent[k], self.shares[k], -k)
        )
        number, within = divmod(self.taken[source], len(self.sizes[source]))
        if self.orders.get(source, (-1, []))[0] != number:
            order = list(range(len(self.sizes[source])))
            random.Random(f"{self.seed} {source} {number}").shuffle(order)
            self.orders[source] = (number, order)
        row = self.orders[source][1][within]
        self.taken[source] += 1
        self.spent[source] += self.sizes[source][row] if self.by == "tokens" else 1
        return self.offsets[source] + row

    @property
    def num_rows(self) -> int:
        """Rows of one epoch. exhaust: every row of the source that ends first, once. cycle: every row of every
        source at least once."""
        twin = Mixture(self.sizes, self.weights, self.by, self.stop, self.seed)
        ended = any if self.stop == "exhaust" else all
        num = 0
        while not ended(taken >= len(sizes) for taken, sizes in zip(twin.taken, twin.sizes, strict=True)):
            twin.draw()
            num += 1
        return num

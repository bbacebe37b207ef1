"""Packs sequences into rows: forests of token trees in depth-first order.

Sequences that begin alike share those tokens. The packer sorts the sequences; in this order each adds to the row what
it does not share with the one before, and so the row becomes the tree of common prefixes. A prompt with eight
completions is stored once, a preference pair shares its prompt, all share a common system prompt, and unrelated
sequences stand side by side. One rule says who sees whom: query `i` sees key `j` iff `j <= i < end[j]`, where `end[j]`
closes the subtree of `j`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from aurify.types import Datum

Ints = np.ndarray  # one-dimensional, int64
MOST_DOUBLED = 1.1  # rows side by side may have so many times the nodes of one row: some prefixes are in several
PART_TOKENS = 512  # nodes that make cores of its own worth it for a row in training


@dataclass(frozen=True, slots=True)
class Row:
    """One forward pass. Node `i` is a token; `nodes[k]` is the path of sequence `data[k]` from root to leaf."""

    tokens: Ints  # [nodes]
    positions: Ints  # [nodes] depth in the tree: the logical position
    end: Ints  # [nodes] one past the last node of the subtree
    parent: Ints  # [nodes] the node that predicts this one; -1 at a root
    data: list[int]  # indices into the packed data, in their original order
    nodes: list[Ints]  # [sequences][length]

    @property
    def num_shared(self) -> int:
        """Tokens that were not computed twice."""
        return sum(len(path) for path in self.nodes) - len(self.tokens)


def common_token_prefix(a: Ints, b: Ints) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def pack_row(sequences: Sequence[Sequence[int]], data: Sequence[int], share: bool = True) -> Row:
    """The forest of `sequences`; with share=False every sequence is a tree of its own."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda k: list(sequences[k])) if share else list(range(len(arrays)))
    tokens: list[Ints] = []
    parents: list[Ints] = []
    positions: list[Ints] = []
    paths: dict[int, Ints] = {}
    end = np.zeros(sum(map(len, arrays)), dtype=np.int64)
    size, previous = 0, None
    for k in order:
        shared = common_token_prefix(arrays[k], arrays[previous]) if share and previous is not None else 0
        above = paths[previous] if previous is not None else np.empty(0, dtype=np.int64)
        end[above[shared:]] = size  # the previous path is complete below the fork
        new = np.arange(size, size + len(arrays[k]) - shared)
        path = np.concatenate([above[:shared], new])
        tokens.append(arrays[k][shared:])
        positions.append(np.arange(shared, len(arrays[k])))
        parents.append(np.concatenate([[-1], path[:-1]])[shared:].astype(np.int64))
        paths[k], previous, size = path, k, size + len(new)
    if previous is not None:
        end[paths[previous]] = size
    return Row(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        end=end[:size],
        parent=np.concatenate(parents),
        data=list(data),
        nodes=[paths[k] for k in range(len(arrays))],
    )


def pack_rows(
    data: Sequence[Datum], max_tokens: int, share: bool = True, parts: int = 1, head_cost: float = 0.0
) -> list[Row]:
    """Rows of at most `max_tokens` nodes (tokens after sharing). The data of a unit stay together; a unit larger than
    `max_tokens` gets a row of its own.

    parts: how many rows will be computed side by side; they have `max_tokens` together. They are fewer if there is too
    little for all, or if dividing would compute too much twice. head_cost: what the head costs for a trained token, in
    nodes."""
    units: dict[tuple[str, int], list[int]] = {}
    for index, datum in enumerate(data):
        units.setdefault(("alone", index) if datum.unit < 0 else ("unit", datum.unit), []).append(index)
    sequences = [datum.tokens for datum in data]
    heads = [head_cost * np.count_nonzero(datum.weights) for datum in data]
    rows = Division(sequences, list(units.values()), share, heads).rows(max_tokens, parts, PART_TOKENS)
    return [pack_row([sequences[index] for index in row], row, share) for row in map(sorted, rows)]


# ---------------------------------------------------------------------- which sequences go into which row


class Division:
    """Which groups (the data of a unit) go into which row. Groups that begin alike are next to each other."""

    def __init__(
        self, sequences: Sequence[list[int]], groups: list[list[int]], share: bool, heads: Sequence[float]
    ) -> None:
        """heads: what each sequence costs beyond its nodes, in nodes."""
        self.arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        self.share = share
        self.groups = sorted(groups, key=lambda group: sequences[group[0]]) if share else groups
        self.first = [self.added(group, None) for group in self.groups]  # nodes in a row that begins with the group
        before = [None, *(group[-1] for group in self.groups)]
        self.after = [self.added(group, last) for group, last in zip(self.groups, before, strict=False)]
        self.heads = [sum(heads[k] for k in group) for group in self.groups]
        self.total = sum(self.after)

    def rows(self, max_tokens: int, parts: int, least: int) -> list[list[int]]:
        """Indices of the sequences of each row; see `pack_rows`. least: nodes that make another core worth it."""
        for number in range(min(parts, self.total // least), 1, -1):
            budget = max_tokens // number
            fewest = max(len(self.filled(math.inf, budget)), -(-self.total // max_tokens) * number)
            num = -(-fewest // number) * number  # else the last round would leave cores idle
            divided = (self.neighbours(num, budget), self.dealt(num))
            fitting = [rows for rows in divided if self.fits(rows, budget)]
            if fitting:
                return self.members(min(fitting, key=lambda rows: max(map(self.cost, rows))))
        return self.members(self.neighbours(len(self.filled(math.inf, max_tokens)), max_tokens))

    def fits(self, rows: list[list[int]], max_tokens: int) -> bool:
        nodes = [self.nodes(row) for row in rows]
        within = all(size <= max_tokens or len(row) == 1 for row, size in zip(rows, nodes, strict=True))
        return within and sum(nodes) <= MOST_DOUBLED * self.total

    def filled(self, max_cost: float, max_tokens: int) -> list[list[int]]:
        """Each row as full as may be, in order."""
        rows: list[list[int]] = []
        nodes, cost = 0, 0.0
        for k, (first, after, head) in enumerate(zip(self.first, self.after, self.heads, strict=True)):
            if rows and nodes + after <= max_tokens and cost + after + head <= max_cost:
                rows[-1].append(k)
                nodes, cost = nodes + after, cost + after + head
            else:
                rows.append([k])
                nodes, cost = first, first + head
        return rows

    def neighbours(self, num: int, max_tokens: int) -> list[list[int]]:
        """At most `num` rows of about equal cost, in order: searches for the least limit of cost that suffices."""
        low, high = 0.0, float(sum(self.first) + sum(self.heads))
        while high - low > 1:
            middle = (low + high) / 2
            low, high = (low, middle) if len(self.filled(middle, max_tokens)) <= num else (middle, high)
        return self.filled(high, max_tokens)

    def dealt(self, num: int) -> list[list[int]]:
        """Gives each group, the dearest first, to the row that costs least so far: good where little is shared."""
        rows = [(0.0, k, list[int]()) for k in range(min(num, len(self.groups)))]
        costs = [first + head for first, head in zip(self.first, self.heads, strict=True)]
        for group in sorted(range(len(self.groups)), key=lambda k: -costs[k]):
            cost, k, row = heapq.heappop(rows)
            heapq.heappush(rows, (cost + costs[group], k, [*row, group]))
        return [sorted(row) for _, _, row in sorted(rows, key=lambda row: row[1])]

    def added(self, group: list[int], previous: int | None) -> int:
        """Nodes that a group adds to a row which ends with `previous`."""
        nodes = 0
        for index in group:
            shared = (
                common_token_prefix(self.arrays[index], self.arrays[previous])
                if self.share and previous is not None
                else 0
            )
            nodes, previous = nodes + len(self.arrays[index]) - shared, index
        return nodes

    def nodes(self, row: list[int]) -> int:
        total = self.first[row[0]]
        for last, k in pairwise(row):
            total += self.after[k] if k == last + 1 else self.added(self.groups[k], self.groups[last][-1])
        return total

    def cost(self, row: list[int]) -> float:
        return self.nodes(row) + sum(self.heads[k] for k in row)

    def members(self, rows: list[list[int]]) -> list[list[int]]:
        return [[index for k in row for index in self.groups[k]] for row in rows]

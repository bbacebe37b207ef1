"""Packs sequences into rows: forests of token trees in depth-first order.

Sequences that begin alike share those tokens. The packer sorts the sequences; in this order each adds to the row what
it does not share with the one before, and so the row becomes the tree of common prefixes. A prompt with eight
completions is stored once, a preference pair shares its prompt, all share a common system prompt, and unrelated
sequences stand side by side. One rule says who sees whom: query `i` sees key `j` iff `j <= i < end[j]`, where `end[j]`
closes the subtree of `j`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aurify.engine.division import Division, Ints, common_prefix
from aurify.types import Datum

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
        shared = common_prefix(arrays[k], arrays[previous]) if share and previous is not None else 0
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

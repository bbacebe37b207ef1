"""Batches for losses whose numbers are derived by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aurify.types import SOURCES, Batch, Source


def make_batch(
    lengths: list[int], sources: Sequence[Source] = (), *, pairs: bool = False, **streams: Tensor | list[float] | float
) -> Batch:
    """Sequences of the given lengths, each a unit of its own, or neighbours in pairs; every token trained and written
    by the policy, the reference at 0, unless said otherwise. A stream given as one number is that number for each
    token."""
    num, total = len(lengths), sum(lengths)
    tensors = {
        name: torch.as_tensor(s) if not isinstance(s, float) else torch.full((total,), s) for name, s in streams.items()
    }
    return Batch(
        **{
            "weights": torch.ones(total),
            "sequence": torch.repeat_interleave(torch.arange(num), torch.tensor(lengths)),
            "unit": torch.arange(num) // (2 if pairs else 1),
            "num_sequences": num,
            "num_units": num // 2 if pairs else num,
            "margin": torch.zeros(num),
            "label": torch.ones(num),
            "baseline": torch.zeros(num),
            "source": torch.tensor([SOURCES.index(source) for source in sources or ["policy"] * total]),
            "ref_logprobs": torch.zeros(total),
            **tensors,
        }
    )

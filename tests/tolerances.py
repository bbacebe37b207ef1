"""How far two right ways of computing the same may lie apart, derived from the dtype of the model. Every bound that is
not exact stands here once.

A weight or an activation of dtype d is rounded by at most eps(d)/2 of its size, and the logits of our tiny random
models are near 1. What is summed in float32 in either dtype (log-softmax, losses) adds FLOAT32_SUMS.
"""

from __future__ import annotations

import torch

FLOAT32_SUMS = 1e-5


def eps(dtype: str) -> float:
    return torch.finfo(getattr(torch, dtype)).eps  # float32: 1.2e-7, bfloat16: 7.8e-3


def per_token(dtype: str) -> float:
    """|difference| of one token's log-prob, or of a sequence's score, between two ways of computing it: our packed
    rows and plain transformers or peft, sampler and trainer. Measured on two layers: at most 1.2 eps in bfloat16."""
    return FLOAT32_SUMS + 4 * eps(dtype)


def mean_over_tokens(dtype: str) -> float:
    """The same, as the mean of |difference| over a step's tokens. Measured: at most 0.7 eps in bfloat16."""
    return FLOAT32_SUMS + eps(dtype)

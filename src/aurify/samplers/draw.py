"""Draws tokens from logits: tensors in, tensors out, without the host.

`torch.multinomial` draws an exponential variate for every entry of the vocabulary, which takes a quarter of a sampling
step on a CPU. Inverting the cumulative distribution needs one uniform number for each row: the vocabulary is summed up
in blocks, the number finds its block, then its token in the block."""

from __future__ import annotations

import torch
from torch import Tensor

from aurify.engine.logprobs import logit_exponentials

BLOCK = 256  # tokens


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: Tensor | None = None,
    greedy: Tensor | None = None,
    filters: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One token a row, [rows] int64, and its log-prob in the distribution it was drawn from, [rows] fp32.

    logits [rows, vocabulary] fp32, overwritten; uniforms [rows] float64 in [0, 1). Options that no row needs are left
    out: temperature [rows] (1 for greedy rows), greedy [rows] bool, filters: top-k, top-p and min-p, [rows] each."""
    if temperature is not None:
        logits = logits.div_(temperature[:, None])
    if filters is not None:
        logits = keep_likely_tokens(logits, *filters)
    best = logits.argmax(1) if greedy is not None else None
    weights, total, _ = logit_exponentials(logits, keep=False)
    tokens = draw_by_cumulative(weights, uniforms)
    if greedy is not None and best is not None:
        tokens = torch.where(greedy, best, tokens)
    logprobs = (weights.gather(1, tokens[:, None]) / total).log()
    return tokens, logprobs.squeeze(1)


def draw_by_cumulative(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the uniform number. weights [rows, vocabulary] in
    proportion to probabilities, uniforms [rows] -> [rows] int64"""
    rows, size = weights.shape
    if size % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, BLOCK - size % BLOCK))
    blocks = weights.view(rows, -1, BLOCK)
    ends = blocks.sum(2, dtype=torch.float32).double().cumsum(1)  # [rows, blocks]
    target = uniforms[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)  # [rows, 1]
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(rows, 1, BLOCK)).squeeze(1)  # [rows, BLOCK]
    within = torch.searchsorted(inside.double().cumsum(1), target - before, right=True)
    # rounding may carry the target past the block's end: then take its likeliest token, which is possible
    likeliest = inside.argmax(1, keepdim=True)
    within = torch.where(within < BLOCK, within, likeliest)
    within = torch.where(inside.gather(1, within) > 0, within, likeliest)
    return (block * BLOCK + within).squeeze(1)


def keep_likely_tokens(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Top-k (0 is off), then top-p, then min-p, each on what the one before left. The rest becomes -inf.

    logits [rows, vocabulary]; the others [rows]. A row without filters keeps its bits."""
    size = logits.shape[1]
    top_k, top_p, min_p = top_k[:, None], top_p.float()[:, None], min_p.float()[:, None]
    touched = (top_k > 0) | (top_p < 1) | (min_p > 0)
    ordered, indices = logits.sort(dim=1, descending=True)
    rank = torch.arange(size, device=logits.device)[None]
    ordered = ordered.masked_fill((rank >= top_k) & (top_k > 0), float("-inf"))
    probabilities = ordered.softmax(1)
    # a token stays if the mass before it is below p: the one that reaches p is the last to stay
    removed = (probabilities.cumsum(1) - probabilities >= top_p) | (probabilities < min_p * probabilities[:, :1])
    removed &= touched & (rank > 0)
    return torch.empty_like(logits).scatter_(1, indices, ordered.masked_fill(removed, float("-inf")))

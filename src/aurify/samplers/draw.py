"""Draws tokens from logits.

`torch.multinomial` makes an exponential variate for every entry of the vocabulary: a quarter of the time of a
sampling step on a CPU. Inverting the cumulative distribution needs one uniform number a row: the vocabulary is
summed up in blocks, the number finds its block, then its token in the block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aurify.engine.logprobs import exponentials
from aurify.types import SamplingParams

BLOCK = 256  # tokens


def draw(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token a row and its log-prob in the distribution it was drawn from (for greedy rows: at temperature 1).

    logits [rows, vocabulary] fp32, overwritten; uniforms in [0, 1), one a row."""
    temperatures = [p.temperature or 1.0 for p in params]
    if any(temperature != 1.0 for temperature in temperatures):
        logits /= torch.tensor(temperatures, device=logits.device)[:, None]
    filtered = [k for k, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p]
    if filtered:
        rows = torch.tensor(filtered, device=logits.device)
        logits[rows] = keep_likely(logits[rows], [params[k] for k in filtered])
    greedy = [k for k, p in enumerate(params) if p.temperature == 0]
    best = logits[torch.tensor(greedy, device=logits.device)].argmax(1).tolist() if greedy else []
    weights, total, _ = exponentials(logits, keep=False)
    tokens = invert(weights, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
    for k, token in zip(greedy, best, strict=True):
        tokens[k] = token
    logprobs = (weights.gather(1, tokens[:, None]) / total).log()
    return tokens.tolist(), logprobs.squeeze(1).tolist()


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
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
    inside = blocks[torch.arange(rows, device=blocks.device), block.squeeze(1)]  # [rows, BLOCK]
    within = torch.searchsorted(inside.double().cumsum(1), target - before, right=True)
    # rounding may carry the target past the block's end: take its likeliest token, which is surely possible
    within = torch.where(within < BLOCK, within, inside.argmax(1, keepdim=True))
    chosen = inside.gather(1, within)
    within = torch.where(chosen > 0, within, inside.argmax(1, keepdim=True))
    return (block * BLOCK + within).squeeze(1)


def keep_likely(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Top-k, then top-p, then min-p, each on what the one before left; the rest becomes -inf. [rows, vocabulary]"""
    device, size = logits.device, logits.shape[1]
    top_k = torch.tensor([p.top_k or size for p in params], device=device)[:, None].clamp(max=size)
    top_p = torch.tensor([p.top_p for p in params], device=device)[:, None]
    min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
    ordered, indices = logits.sort(dim=1, descending=True)
    ordered = ordered.masked_fill(torch.arange(size, device=device)[None] >= top_k, float("-inf"))
    probabilities = ordered.softmax(1)
    # a token stays while the mass before it is below p: the one that passes p is the last to stay
    removed = (probabilities.cumsum(1) - probabilities >= top_p) | (probabilities < min_p * probabilities[:, :1])
    removed[:, 0] = False
    return torch.empty_like(logits).scatter_(1, indices, ordered.masked_fill(removed, float("-inf")))

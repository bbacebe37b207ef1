"""Alignment via optimal transport (arXiv 2406.05882): not each chosen completion over its own rejected one, but the
chosen ones as a distribution over the rejected ones. In one dimension the cheapest transport pairs equal ranks, so both
sides are sorted over the step. With S = log pi(y), h = S - log pi_ref(y), (k) the k-th smallest and
f(x) = -(1 - e) log s(beta x) - e log s(-beta x):

    unpaired   f(h_c(k) - h_r(k)): the chosen ones beat the rejected ones of other prompts too
    paired     f(g(k) - g_ref(k)), g = S_c - S_r: the policy's gaps beat the reference's

A rank depends on the whole step, a micro-batch knows a part. So `prepare` looks once at all of the step (one more
forward pass) and gives each completion what it is measured against, a constant: the value of equal rank. TRL sorts
within a micro-batch: its loss depends on memory. With one pair a step both are DPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.algorithms.dpo import sigmoid
from aurify.algorithms.pairs import Smoothing, reward_metrics, split_pairs
from aurify.bounds import Checked, PositiveFloat
from aurify.types import Batch, Datum, Lesson, Need, Outputs, Per, Policy, Sums


@dataclass(frozen=True)
class AOT(Checked):
    beta: PositiveFloat = 0.1  # strength of the pull to the reference
    label_smoothing: Smoothing = 0.0  # share of pairs that may be the wrong way round
    paired: bool = False  # sort differences of pairs, instead of chosen and rejected apart

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset({"ref_logprobs"})
    per: ClassVar[Per] = "unit"

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        now = sum_trained_logprobs(data, policy.logprobs(data, temperature=temperature))  # [sequences]
        before = sum_trained_logprobs(data, [datum.ref_logprobs or [] for datum in data])
        if self.paired:
            gaps, known = torch.sub(*split_pairs(now)), torch.sub(*split_pairs(before))
            baseline = match_by_rank(gaps, known, policy.over_ranks).repeat_interleave(2)
        else:
            chosen, rejected = split_pairs(now - before)
            sides = ((chosen, rejected), (rejected, chosen))
            baseline = torch.stack([match_by_rank(*side, policy.over_ranks) for side in sides], 1).view(-1)
        return [replace(datum, baseline=value) for datum, value in zip(data, baseline.tolist(), strict=True)]

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        assert batch.ref_logprobs is not None
        h = batch.sum_by_sequence(batch.weights * (out.logprobs - batch.ref_logprobs))  # [sequences]
        metrics = reward_metrics(*split_pairs(self.beta * h))
        above, below = split_pairs(batch.baseline)  # [pairs]
        if self.paired:
            gap = torch.sub(*split_pairs(batch.sum_by_sequence(batch.weights * out.logprobs)))
            return sigmoid(gap, above, self.beta, self.label_smoothing).sum(), metrics
        chosen, rejected = split_pairs(h)
        seen = sigmoid(chosen, above, self.beta, self.label_smoothing)
        seen = (seen + sigmoid(below, rejected, self.beta, self.label_smoothing)).sum()
        return seen - seen.detach() / 2, metrics  # each term is seen from both of its ends: value twice, gradient once


def sum_trained_logprobs(data: Sequence[Datum], logprobs: Sequence[Sequence[float]]) -> Tensor:
    """[sequences] fp64, over the trained tokens by weight."""
    return torch.tensor(
        [
            math.fsum(w * value for w, value in zip(datum.weights, row, strict=True))
            for datum, row in zip(data, logprobs, strict=True)
        ],
        dtype=torch.float64,
    )


def match_by_rank(values: Tensor, others: Tensor, over_ranks: Callable[[Sequence[float]], list[float]]) -> Tensor:
    """For each of `values` the one of `others` that has its rank in the step; where values are equal, the mean of
    theirs."""
    everyone, counterparts = (
        torch.tensor(over_ranks(side.tolist()), dtype=torch.float64).sort().values for side in (values, others)
    )
    values = values.contiguous()
    first, end = torch.searchsorted(everyone, values), torch.searchsorted(everyone, values, right=True)
    totals = F.pad(counterparts.cumsum(0), (1, 0))
    return (totals[end] - totals[first]) / (end - first)

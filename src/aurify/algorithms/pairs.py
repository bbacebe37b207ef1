"""What losses on preference pairs have in common. The sequences of their batches alternate: chosen, rejected, chosen,
and so on, and what they return is a sum over pairs."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from aurify.bounds import Interval
from aurify.types import Batch, Outputs, Sums

Smoothing = Annotated[float, Interval(ge=0, lt=0.5)]  # the share of pairs that are labelled the wrong way round


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """[sequences] -> chosen [pairs], rejected [pairs]"""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return chosen, rejected


def count_trained_tokens(batch: Batch) -> Tensor:
    """[sequences] trained tokens by weight, to divide by: 1 where a completion has none."""
    return torch.where(batch.lengths > 0, batch.lengths, 1.0)


def mean_by_sequence(values: Tensor, batch: Batch) -> Tensor:
    """[tokens] -> [sequences], each the mean over its trained tokens by weight."""
    return batch.sum_by_sequence(batch.weights * values) / count_trained_tokens(batch)


def chosen_nll(logprobs: Tensor, batch: Batch) -> Tensor:
    """[tokens] -> [pairs] mean negative log-likelihood of a chosen token, for the terms that imitate.

    The mean is taken over each completion and then over the pairs, as in iterative RPO (arXiv 2404.19733) and ORPO, so
    that a pair's share does not depend on which others it meets in a micro-batch. TRL takes the mean over all tokens
    of a micro-batch: long completions weigh more there."""
    return -split_pairs(mean_by_sequence(logprobs, batch))[0]


def add_sft_term(losses: Tensor, metrics: Sums, sft_coef: float, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
    """What `loss` returns: the sum of [pairs] losses and, where it has a weight, of the chosen ones' NLL."""
    if not sft_coef:
        return losses.sum(), metrics
    nll = chosen_nll(out.logprobs, batch)
    return (losses + sft_coef * nll).sum(), metrics | {"loss/sft": nll.detach().sum()}


def reward_metrics(chosen: Tensor, rejected: Tensor) -> Sums:
    """Sums over pairs of what a loss takes for the rewards, [pairs] each. A tie counts as wrong."""
    return {
        "reward/accuracy": (chosen > rejected).sum(),
        "reward/margin": (chosen - rejected).detach().sum(),
        "reward/chosen": chosen.detach().sum(),
        "reward/rejected": rejected.detach().sum(),
    }

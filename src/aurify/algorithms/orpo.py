"""Odds ratio preference optimisation (arXiv 2403.07691): imitation of the chosen completion, and a small penalty where
the rejected one is as likely. Without a reference, in one stage. With p = exp(a), a the mean log-prob per token:

    NLL(chosen) - beta log sigmoid(log odds(p_c) - log odds(p_r)),   odds(p) = p / (1 - p)

The NLL is over the completion, as in the paper; prompt tokens have weight 0 and are never predicted. TRL's ORPO takes
it over prompt and completion, which also teaches to write prompts; we have no option for that, because a prompt with
weights would enter the odds as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aurify.algorithms.pairs import mean_by_sequence, reward_metrics, split_pairs
from aurify.bounds import Checked, PositiveFloat
from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums

HIGHEST = -1e-7  # of a mean log-prob: at 0 the odds are infinite, and nearer to it exp(a) is 1 in float32


@dataclass(frozen=True)
class ORPO(Checked):
    beta: PositiveFloat = 0.1  # the paper's lambda

    learns_from: ClassVar[Lesson] = "pairs"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "unit"

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        means = mean_by_sequence(out.logprobs, batch)  # [sequences]
        chosen, rejected = split_pairs(log_odds(means))  # [pairs]
        nll = -split_pairs(means)[0]
        losses = nll - self.beta * F.logsigmoid(chosen - rejected)
        metrics = reward_metrics(self.beta * chosen, self.beta * rejected)
        return losses.sum(), metrics | {"loss/sft": nll.detach().sum()}


def log_odds(mean_logprobs: Tensor) -> Tensor:
    a = mean_logprobs.clamp(max=HIGHEST)
    return a - log1mexp(a)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0, by whichever form does not cancel."""
    return torch.where(a < -math.log(2), torch.log1p(-torch.exp(a)), torch.log(-torch.expm1(a)))

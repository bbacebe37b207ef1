"""Kahneman-Tversky optimisation (arXiv 2402.01306): single answers, each labelled desirable (1) or not (-1). With
h = log pi(y) - log pi_ref(y), summed over the completion, and z the divergence of the policy from the reference:

    weight (1 - sigmoid(label beta (h - z))),   weight = w_d or w_u by the label

z is what h is on average for completions that do not belong to their prompts: within the step's batch each prompt gets
the completion of the row before it. It is one number for the step, not below 0, and has no gradient. Keep
w_d n_desirable / (w_u n_undesirable) between 1 and 4/3. "apo_zero_unpaired" (arXiv 2408.06266) sets z = 0.

TRL estimates z from each micro-batch; we from the whole step, so that it does not depend on memory. TRL takes the row
before even where it answers the same prompt, as in pairs that were taken apart; we look for another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aurify.bounds import Checked, NonNegativeFloat, PositiveFloat
from aurify.errors import UserError
from aurify.types import Batch, Datum, Lesson, Need, Outputs, Per, Policy, Sums


@dataclass(frozen=True)
class KTO(Checked):
    beta: PositiveFloat = 0.1  # strength of the pull to the reference
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"  # apo_zero_unpaired: z = 0
    desirable_weight: NonNegativeFloat = 1.0  # of answers labelled true
    undesirable_weight: NonNegativeFloat = 1.0  # of answers labelled false

    learns_from: ClassVar[Lesson] = "labels"
    per: ClassVar[Per] = "sequence"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"ref_logprobs", "reference"} if self.loss_type == "kto" else {"ref_logprobs"})

    def prepare(self, data: Sequence[Datum], policy: Policy, temperature: float) -> list[Datum]:
        if wrong := {datum.label for datum in data} - {1.0, -1.0}:
            raise UserError(f"kto: a label is {min(wrong)}; it must be 1 (desirable) or -1 (undesirable)")
        if self.loss_type != "kto":
            return list(data)
        trained = [datum for datum in data if any(datum.weights)]
        if len(trained) < 2:
            raise UserError(
                "kto: a step of one row has no other completion to estimate the divergence from; set batch_size to at "
                "least 2 (8 or more is usual), or take loss_type apo_zero_unpaired, which needs no estimate"
            )
        baseline = estimate_mismatched_kl(trained, policy, temperature)
        return [replace(datum, baseline=baseline) for datum in data]

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        assert batch.ref_logprobs is not None
        h = batch.sum_by_sequence(batch.weights * (out.logprobs - batch.ref_logprobs))  # [sequences]
        baseline = batch.baseline if self.loss_type == "kto" else torch.zeros_like(h)
        gain = batch.label * self.beta * (h - baseline)
        weight = torch.where(batch.label > 0, self.desirable_weight, self.undesirable_weight)
        return (weight * torch.sigmoid(-gain)).sum(), {  # 1 - sigmoid(x) = sigmoid(-x)
            "reward/accuracy": (gain > 0).sum(),
            "reward/margin": gain.detach().sum(),  # positive: desirable ones above, undesirable ones below z
            "reward/desirable": (batch.label > 0).sum(),
            "loss/divergence": baseline.sum(),
        }


def estimate_mismatched_kl(data: Sequence[Datum], policy: Policy, temperature: float) -> float:
    """The mean of h over mismatched completions, of all ranks, at least 0."""
    mismatched = mismatch_completions(data)
    now = policy.logprobs(mismatched, temperature=temperature)
    before = policy.logprobs(mismatched, reference=True, temperature=temperature)
    own = [
        math.fsum(w * (a - b) for w, a, b in zip(datum.weights, new, old, strict=True))
        for datum, new, old in zip(mismatched, now, before, strict=True)
    ]
    ratios = policy.over_ranks(own)
    return max(0.0, math.fsum(ratios) / len(ratios))


def mismatch_completions(data: Sequence[Datum]) -> list[Datum]:
    """Each prompt with the completion of the row before it, the first with that of the last; where that answers the
    same prompt, with that of the nearest row before it that does not. What is longer than the longest row of the batch
    is cut there: every row fits into the model, and so do these."""
    limit = max(len(datum.tokens) for datum in data)
    starts = [next((t for t, weight in enumerate(d.weights) if weight), len(d.tokens)) for d in data]
    prompts = [datum.tokens[:start] for datum, start in zip(data, starts, strict=True)]
    result = []
    for k, prompt in enumerate(prompts):
        earlier = range(k - 1, k - len(data), -1)  # negative ones count from the end
        other = next((j for j in earlier if prompts[j] != prompt), k - 1)
        tokens = prompt + data[other].tokens[starts[other] :]
        weights = [0.0] * len(prompt) + data[other].weights[starts[other] :]
        result.append(Datum(tokens[:limit], weights[:limit]))
    return result

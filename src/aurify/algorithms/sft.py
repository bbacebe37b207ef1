"""Supervised fine-tuning: imitate the answers of the data. The loss is the weighted mean over the trained tokens of

    nll   -log pi
    dft   -sg(pi) log pi: dynamic fine-tuning (arXiv 2508.05629). Likelihood alone is a policy gradient whose reward is
          1 / pi; taking that off, a token that the model finds unlikely no longer pulls harder than others. The value
          is highest at pi = 1 / e: "loss/nll" tells whether the model learns.

Label smoothing needs the log-probs of the whole vocabulary, which the engine never holds; TRL gives it up as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from aurify.types import Batch, Lesson, Need, Outputs, Per, Sums


@dataclass(frozen=True)
class SFT:
    loss_type: Literal["nll", "dft"] = "nll"  # dft: every token weighs as much as it is likely

    learns_from: ClassVar[Lesson] = "answers"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "token"

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Sums]:
        nll = -batch.weights * out.logprobs  # [tokens]
        if self.loss_type == "nll":
            return nll.sum(), {}
        return (out.logprobs.detach().exp() * nll).sum(), {"loss/nll": nll.detach().sum()}

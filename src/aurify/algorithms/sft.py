"""Supervised fine-tuning: the mean negative log-likelihood of the trained tokens, by their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aurify.types import Batch, Lesson, Metrics, Need, Outputs, Per


@dataclass(frozen=True)
class SFT:
    learns_from: ClassVar[Lesson] = "answers"
    needs: ClassVar[frozenset[Need]] = frozenset()
    per: ClassVar[Per] = "token"

    def loss(self, out: Outputs, batch: Batch) -> tuple[Tensor, Metrics]:
        return -(batch.weights * out.logprobs).sum(), {}

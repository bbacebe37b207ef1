"""Dr. GRPO (arXiv 2503.20783), "GRPO done right": advantages that are centred and not scaled, so that easy and hard
questions weigh as they are; and sums over tokens divided by a constant, so that long wrong answers are not spared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aurify.algorithms.estimators import Scale
from aurify.algorithms.grpo import GRPO


@dataclass(frozen=True)
class DrGRPO(GRPO):
    scale: Scale = "none"
    aggregator: Literal["token", "sequence", "constant"] = "constant"  # constant_length must be given

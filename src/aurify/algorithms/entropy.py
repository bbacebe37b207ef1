"""Keeps the entropy of a policy near a target by moving the weight of its bonus (Skywork-OR1, arXiv 2505.22312)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from aurify.types import Metrics

STEP, HIGHEST = 0.005, 1.0  # of the weight


@dataclass
class EntropyController:
    """After each step the weight goes up by 0.005 if the entropy was below the target, else down, within [0, 1]. It
    acts only while the entropy is not above the target."""

    target: float
    coef: float
    active: bool = True

    def apply(self, algorithm: Any) -> Any:
        """The algorithm of the next step: a GRPO, or one of its relatives."""
        return replace(algorithm, entropy_coef=self.coef if self.active else 0.0)

    def observe(self, metrics: Metrics) -> Metrics:
        """Takes the entropy of a step, in nats a token, from its metrics, and returns what to report. A step that
        trained nothing has none."""
        entropy = metrics.get("loss/entropy", math.nan)
        if math.isfinite(entropy):
            self.coef = min(HIGHEST, max(0.0, self.coef + (STEP if entropy < self.target else -STEP)))
            self.active = entropy <= self.target
        return {"optim/entropy_coef": self.coef}

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef, self.active = state["coef"], state["active"]

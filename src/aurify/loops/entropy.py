"""Keeps the entropy of a policy near a target by moving the weight of its bonus (Skywork-OR1, arXiv 2505.22312)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

STEP, HIGHEST = 0.005, 1.0  # of the weight


@dataclass
class EntropyController:
    """After each step the weight goes up by 0.005 if the entropy was below the target, else down, within [0, 1]. It
    acts only while the entropy is not above the target."""

    target: float
    coef: float
    active: bool = True

    @staticmethod
    def of(algorithm: Any) -> EntropyController | None:
        target = getattr(algorithm, "entropy_target", None)
        return None if target is None else EntropyController(target, algorithm.entropy_coef)

    def apply(self, algorithm: Any) -> Any:
        """The algorithm of the next step: a GRPO, or one of its relatives."""
        return replace(algorithm, entropy_coef=self.coef if self.active else 0.0)

    def observe(self, entropy: float | None) -> None:
        """entropy: of the step, in nats a token; None where nothing was trained."""
        if entropy is None or not math.isfinite(entropy):
            return
        self.coef = min(HIGHEST, max(0.0, self.coef + (STEP if entropy < self.target else -STEP)))
        self.active = entropy <= self.target

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef, self.active = state["coef"], state["active"]

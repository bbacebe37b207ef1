"""Options under which an algorithm must have the properties too, beside its defaults: (registered name, options).

An algorithm whose defaults cannot be built (a required option) is tested with its lines here alone."""

from __future__ import annotations

from typing import Any

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("reward_model", {"centering": 0.01}),
    ("dpo", {"label_smoothing": 0.1}),
    ("grpo", {"aggregator": "sequence", "scale": "none", "kl_coef": 0.1}),
    ("grpo", {"aggregator": "constant", "constant_length": 50, "kl_coef": 0.1, "kl": "k1", "dual_clip": 3.0}),
    ("grpo", {"surrogate": "plain", "kl_coef": 0.1, "kl": "k2", "entropy_coef": 0.05}),
]

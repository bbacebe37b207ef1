"""Options under which an algorithm must have the properties too, beside its defaults: (registered name, options).

An algorithm whose defaults cannot be built (a required option) is tested with its lines here alone."""

from __future__ import annotations

from typing import Any

from aurify.algorithms.correction import Correction

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("reward_model", {"centering": 0.01}),
    ("dpo", {"label_smoothing": 0.1}),
    ("dpo", {"loss_type": "sigmoid_norm", "beta": 5.0, "label_smoothing": 0.1}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    ("dpo", {"loss_type": "hinge"}),
    ("dpo", {"loss_type": "ipo"}),
    ("dpo", {"loss_type": "apo_zero"}),
    ("dpo", {"loss_type": "apo_down"}),
    ("dpo", {"loss_type": "nca"}),
    ("dpo", {"loss_type": "bco"}),
    ("dpo", {"loss_type": "sppo"}),
    ("dpo", {"loss_type": "exo"}),
    ("dpo", {"loss_type": "discopop"}),
    ("dpo", {"divergence": "forward_kl"}),
    ("dpo", {"divergence": "js"}),
    ("dpo", {"divergence": "alpha", "loss_type": "robust", "label_smoothing": 0.1}),
    ("dpo", {"length_alpha": 0.3, "sft_coef": 0.5}),
    ("sft", {"loss_type": "dft"}),
    ("aot", {"paired": True, "label_smoothing": 0.1}),
    ("simpo", {"sft_coef": 0.3}),
    ("simpo", {"alpha": 0.25, "label_smoothing": 0.1}),
    ("cpo", {"label_smoothing": 0.1, "sft_coef": 0.0}),
    ("cpo", {"loss_type": "hinge"}),
    ("cpo", {"loss_type": "ipo"}),
    ("orpo", {"beta": 1.0}),
    ("kto", {"desirable_weight": 1.3, "undesirable_weight": 0.7}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
    ("grpo", {"aggregator": "sequence", "scale": "none", "kl_coef": 0.1}),
    ("grpo", {"aggregator": "constant", "constant_length": 50, "kl_coef": 0.1, "kl": "k1", "dual_clip": 3.0}),
    ("grpo", {"surrogate": "plain", "kl_coef": 0.1, "kl": "k2", "entropy_coef": 0.05}),
    ("luffy", {"clip_on_policy": True, "aggregator": "sequence", "kl_coef": 0.1}),
    ("exgrpo", {"aggregator": "constant", "constant_length": 50, "entropy_coef": 0.05}),
    ("grpo", {"top_entropy": 0.3}),
    ("grpo", {"correction": Correction("token_tis")}),
    ("grpo", {"correction": Correction("sequence_mis", 0.01, 100.0), "aggregator": "sequence"}),
    ("dr_grpo", {"constant_length": 50}),
    ("dapo", {"max_length": 40, "buffer": 10}),
    ("gspo", {"form": "token"}),
    ("gspo", {"aggregator": "constant", "constant_length": 1}),
    ("gmpo", {"surrogate": "plain"}),
    ("vespo", {"aggregator": "sequence", "k_positive": 1.0, "lambda_negative": 1.0}),
    ("cispo", {"max_ratio": 5.0}),
    ("reinforce_pp", {"baseline": True}),
    ("distillation", {"divergence": "forward", "aggregator": "sequence", "entropy_coef": 0.05}),
    ("distillation", {"divergence": "jsd", "beta": 0.3, "top_entropy": 0.3}),
    ("distillation", {"vocabulary": "sampled"}),
    ("distillation", {"vocabulary": "sampled", "divergence": "forward"}),
    ("distillation", {"vocabulary": "sampled", "divergence": "jsd"}),
]

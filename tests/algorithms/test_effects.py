"""No option is accepted and then ignored: walked over all registered algorithms, all their fields, and the options
beside which a field may lose its effect. A field either changes what is computed or is refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from batches import make_batch

from aurify import registry
from aurify.algorithms.correction import Correction
from aurify.algorithms.effects import NEVER, check_algorithm_options, collect_option_effects
from aurify.algorithms.grpo import GRPO
from aurify.errors import UserError
from aurify.loops.online import choose_trained
from aurify.pipeline.recipe import OnlineStage
from aurify.types import Datum, Group, Outputs, Segment, Task, Trajectory, prepared

NEEDED: dict[str, dict[str, Any]] = {"dr_grpo": {"constant_length": 50}, "cispo": {"max_ratio": 5.0}}
CONTEXTS: list[dict[str, Any]] = [
    {},
    *({"surrogate": name} for name in ("plain", "clip")),
    {"aggregator": "sequence"},
    {"aggregator": "constant", "constant_length": 20},
    *({"kl_coef": 0.1, "kl": kind} for kind in ("k1", "k2", "k3")),
    {"entropy_coef": 0.1},
    {"entropy_target": 0.5},
    {"covariance": "clip"},
    {"covariance": "kl", "surrogate": "plain"},
    {"form": "token"},
    {"form": "token", "covariance": "clip"},
    {"vocabulary": "sampled"},
    {"vocabulary": "sampled", "surrogate": "clip"},
    *({"divergence": name} for name in ("forward", "jsd", "alpha", "js")),
    {"clip_on_policy": True},
    {"sft_coef": 0.5},
    *({"shape": name} for name in ("log", "none", "power", "linear_log")),
    {"credit": "turn"},
    {"form": "token", "credit": "turn"},
    {"baseline": True},
    {"reward_kl_coef": 0.1},
    {"baseline": True, "reward_kl_coef": 0.1},
    {"max_length": 4, "buffer": 2},
    *({"loss_type": name} for name in ("ipo", "hinge", "exo", "apo_zero", "apo_zero_unpaired", "dft", "bco")),
    {"paired": True},
]
OTHER: dict[str, Any] = {  # than the default; two in a dict where they only go together
    "scale": ["none", "group"],
    "credit": ["turn"],
    "discount": [0.5],
    "surrogate": ["plain", "clip"],
    "clip_low": [0.05],
    "clip_high": [0.06],
    "dual_clip": [1.01],
    "aggregator": ["sequence", "token", {"aggregator": "sequence", "constant_length": None}],
    "constant_length": [7],
    "kl_coef": [0.3],
    "kl": ["k1", "k2"],
    "kl_clamp": [0.01],
    "entropy_coef": [0.3],
    "entropy_target": [0.9],
    "top_entropy": [0.5],
    "covariance": [{"covariance": kind, "covariance_share": 0.3} for kind in ("clip", "kl")],
    "covariance_share": [0.5],
    "covariance_kl_coef": [0.7],
    "flat_groups": ["keep"],
    "correction": [Correction("token_tis", high=1.01)],
    "max_length": [{"max_length": 5, "buffer": 3}],
    "buffer": [{"max_length": 5, "buffer": 3}],
    "form": ["token"],
    "tau_positive": [3.0],
    "tau_negative": [3.0],
    "k_positive": [5.0],
    "lambda_positive": [5.0],
    "k_negative": [5.0],
    "lambda_negative": [5.0],
    "max_ratio": [1.05],
    "reward_kl_coef": [0.4],
    "baseline": [True],
    "weights": [{"weights": {"a": 3.0}}],
    "divergence": ["forward", "jsd", "js", "alpha"],
    "beta": [0.9],
    "vocabulary": ["sampled"],
    "shape": ["power", "fraction"],
    "gamma": [0.9],
    "clip_on_policy": [True],
    "behaviour": ["recorded"],
    "sft_coef": [0.7],
    "entropy_on": ["policy"],
    "replay_gamma": [0.9],
    "loss_type": ["dft", "ipo", "apo_zero_unpaired"],
    "label_smoothing": [0.2],
    "divergence_alpha": [0.7],
    "length_alpha": [0.3],
    "centering": [0.1],
    "desirable_weight": [2.0],
    "undesirable_weight": [2.0],
    "paired": [True],
    "alpha": [0.3],
}
LENGTHS = [3, 2, 4, 3, 2, 5, 3, 4] * 8
SOURCES = ["policy", "policy", "guidance", "policy", "replay", "policy", "guidance", "replay"] * 8


def number(place: int, kind: int) -> float:
    """Something like noise in (-1, 1), the same each time."""
    value = math.sin(12.9898 * place + 78.233 * kind) * 43758.5453
    return 2 * (value - math.floor(value)) - 1


class Stub:
    """A policy that gives fixed numbers."""

    def values(self, data: list[Datum], kind: int) -> list[list[float]]:
        return [[-kind + 0.5 * number(7 * k + t, kind) for t in range(len(d.tokens))] for k, d in enumerate(data)]

    def logprobs(self, data: Any, *, reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        return self.values(data, 2 if reference else 1)

    def entropies(self, data: Any, *, temperature: float = 1.0) -> list[list[float]]:
        return [[-value for value in row] for row in self.values(data, 3)]

    def over_ranks(self, values: Any) -> list[float]:
        return list(values)


def groups() -> list[Group]:
    rows = [[(1.0, 0.5), (0.0, 3.0), (1.0, 1.0), (0.0, 0.0)], [(1.0, 1.0)] * 4, [(0.0, 2.0), (0.5, 0.0)] * 2]
    between, last = [Segment([3], "environment")], Segment([2], "policy")
    result = []
    for place, row in enumerate([*rows, rows[1]]):
        trajectories = [
            Trajectory(
                [Segment([1], "prompt"), *([Segment([2] * (k + 1), "policy"), *between] if place < 3 else []), last],
                [],
                0,
                {"a": a, "b": b},
                a + b,
                source="guidance" if k == 3 else "policy",
            )
            for k, (a, b) in enumerate(row)
        ]
        result.append(Group(Task(str(place), []), trajectories))
    return result


def data_of() -> list[Datum]:
    result = []
    for k, (length, source) in enumerate(zip(LENGTHS, SOURCES, strict=True)):
        streams = {
            name: [-1.5 + 0.5 * number(9 * k + t, kind) for t in range(length + 1)]
            for kind, name in enumerate(("old_logprobs", "ref_logprobs", "logprobs"), 5)
        }
        result.append(
            Datum(
                list(range(3 + k, 4 + k + length)),
                [0.0] + [1.0] * length,
                advantages=[number(k, 9)] * (length + 1),
                unit=k // 2,
                label=1.0 if k % 2 == 0 else -1.0,
                source=source,  # type: ignore[arg-type]
                **streams,
            )
        )
    return result


STAGE = OnlineStage(method="x", model="random:tiny")  # type: ignore[arg-type]


def fingerprint(algorithm: Any) -> list[float]:
    """All that an option can change: what advantages come out, what is trained, what data go in, and the gradient."""
    found: list[float] = []
    data = data_of()
    if hasattr(algorithm, "advantages"):
        every = algorithm.advantages(groups())
        keep = algorithm.keeps_flat(every)
        found += [value for row in every for value in row]
        turns = algorithm.turn_advantages(groups()) or []
        found += [value for rows in turns for row in rows for value in row]
        pairs, told = algorithm.revise_advantages([[1.0, 0.0], [1.0, 1.0]], [data[:2], data[2:4]])
        if told:
            found += [value for row in pairs for datum in row for value in datum.advantages or ()]
        else:
            found += [
                float(len(choose_trained(g, row, STAGE, keep_flat=keep)))
                for g, row in zip(groups(), every, strict=True)
            ]
        if controller := algorithm.make_controller():
            for entropy in (0.7, 0.1):
                controller.observe({"loss/entropy": entropy})
                found += [controller.coef, float(controller.active)]
            algorithm = controller.apply(algorithm)
    data = prepared(algorithm, data, Stub())  # type: ignore[arg-type]

    def stream(name: str) -> torch.Tensor:
        return torch.tensor([value for datum in data for value in (getattr(datum, name) or [0.0] * 99)[1 : 1 + 99]])

    batch = make_batch(
        LENGTHS,
        [source for source, length in zip(SOURCES, LENGTHS, strict=True) for _ in range(length)],  # type: ignore[misc]
        **{name: stream(name) for name in ("advantages", "old_logprobs", "ref_logprobs", "logprobs")},
        label=torch.tensor([datum.label for datum in data]),
        baseline=torch.tensor([datum.baseline for datum in data]),
    )
    total = sum(LENGTHS)
    leaves = [
        torch.tensor([-0.4 + 0.6 * number(t, kind) for t in range(n)])
        for kind, n in ((20, total), (21, total), (22, len(LENGTHS)), (23, total))
    ]
    leaves[0] = stream("old_logprobs") + 0.4 + leaves[0]  # ratios from .55 to 1.8
    leaves = [leaf.requires_grad_(True) for leaf in leaves]
    logprobs, entropy, scores, apart = leaves
    kinds = {"reverse": 1.0, "forward": 2.0, "jsd": 3.0}
    out = Outputs(
        logprobs,
        entropy if "entropy" in algorithm.needs else None,
        scores,
        lambda kind, beta: apart * kinds[kind] * (beta if kind == "jsd" else 1.0),
    )
    counts = {"token": total, "sequence": len(LENGTHS), "unit": len(LENGTHS) // 2}
    loss = algorithm.loss(out, batch)[0] / counts[algorithm.per]
    for grad in torch.autograd.grad(loss, leaves, allow_unused=True):
        found += [] if grad is None else grad.tolist()
    return found


def build(name: str, options: dict[str, Any]) -> Any:
    return registry.get_entry("algorithm", name)(**{**NEEDED.get(name, {}), **options})


def contexts(name: str) -> list[dict[str, Any]]:
    hints = get_type_hints(registry.get_entry("algorithm", name))
    known = {spec.name for spec in fields(registry.get_entry("algorithm", name))}
    found = []
    for context in CONTEXTS:
        words = {key: value for key, value in context.items() if isinstance(value, str)}
        if set(context) <= known and all(word in names_in(hints[key]) for key, word in words.items()):
            try:
                build(name, context)
            except (UserError, KeyError):
                continue
            found.append(context)
    return found


BUILT_IN = [name for name, entry in registry.ENTRIES["algorithm"].items() if isinstance(entry, str)]


def names_in(hint: Any) -> list[str]:
    """The words of a Literal, or of one in a union."""
    return [name for part in get_args(hint) for name in ([part] if isinstance(part, str) else names_in(part))]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_has_an_effect_or_is_refused(name):
    kind = registry.get_entry("algorithm", name)
    hints = get_type_hints(kind)
    acted: set[str] = set()
    for context in contexts(name):
        base = build(name, context)
        before = fingerprint(base)
        for spec in fields(kind):
            for value in OTHER[spec.name]:
                allowed = names_in(hints[spec.name])
                if isinstance(value, str) and allowed and value not in allowed:
                    continue
                change = value if isinstance(value, dict) else {spec.name: value}
                if all(getattr(base, key) == new for key, new in change.items()):
                    continue
                try:
                    other = build(name, {**context, **change})
                except UserError:
                    continue
                assert fingerprint(other) != before, f"{name}({context}): {change} is accepted and ignored"
                acted.add(spec.name)
    silent = {spec.name for spec in fields(kind)} - acted
    silent -= {"kl_coef"} if name == "distillation" else set()  # which it refuses with a reason of its own
    assert silent == {option for option, effect in collect_option_effects(kind).items() if not_here(effect)}


def not_here(effect: Any) -> bool:
    """Whether an effect says "never"."""
    return effect is NEVER or "other methods" in effect.condition


def test_a_condition_of_the_stage_is_looked_at_in_validate_alone():
    stage = replace(STAGE, method="exgrpo", num_minibatches=1)
    algorithm = registry.get_entry("algorithm", "exgrpo")(gamma=0.3)
    check_algorithm_options(algorithm)
    with pytest.raises(UserError, match=r"exgrpo.gamma: 0.3 has an effect only in a stage with guidance"):
        check_algorithm_options(algorithm, stage)


def test_clip_high_in_luffy_and_rloo_and_clips_with_a_plain_surrogate_are_refused():
    luffy, rloo = registry.get_entry("algorithm", "luffy"), registry.get_entry("algorithm", "rloo")
    for make, place in (
        (lambda: luffy(clip_high=0.3), "luffy.clip_high: 0.3 has an effect only with clip_on_policy: true"),
        (lambda: rloo(clip_high=0.3), "rloo.clip_high: 0.3 has an effect only with surrogate: clip"),
        (lambda: GRPO(surrogate="plain", dual_clip=3.0), "grpo.dual_clip"),
        (lambda: GRPO(constant_length=9), "grpo.constant_length: 9 has an effect only with aggregator: constant"),
        (lambda: rloo(scale="none"), "rloo.scale: none has an effect only with other methods"),
        (lambda: Correction(low=0.1), "correction.low"),
        (lambda: Correction(high=5.0), "correction.high"),
    ):
        with pytest.raises(UserError, match=place):
            make()

"""TRL 1.16 as an oracle for the preference family: on the same batch and the same weights, its losses and gradients are
ours. Where TRL departs from a paper, a test shows by how much, and that we follow the paper:

- DPO's added SFT term, CPO and ORPO: TRL takes the NLL over all tokens of a micro-batch, the papers (and we) over each
  completion first. Compared in batches of one pair, where the two are the same.
- ORPO: TRL's NLL also covers the prompt.
- CPO's trainer adds an NLL of weight 1 to SimPO unless cpo_alpha is 0.
- DPO "sigmoid" and "sigmoid_norm": TRL ignores label smoothing there. What it should be is TRL's "robust" undone.
- AOT: TRL sorts a micro-batch, we the step. Compared with one micro-batch a step.
- TPO: we have no third answer to a prompt. Compared where it is the chosen one.
- KTO: TRL estimates the divergence in each micro-batch, we over the step; TRL takes the completion before even where it
  answers the same prompt. Compared with one micro-batch a step, in which it does not.

docs/preferences.md lists what TRL has and Aurify has not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from trl_oracle import (
    PAIRS,
    ROWS,
    TOLERANCE,
    arguments,
    compare,
    datasets,
    datum,
    pair_data,
    sharp_model,
    trl,
    whole_loss,
    with_reference,
)

from aurify.algorithms.aot import AOT
from aurify.algorithms.cpo import CPO
from aurify.algorithms.dpo import DPO
from aurify.algorithms.kto import KTO
from aurify.algorithms.orpo import ORPO
from aurify.algorithms.sft import SFT
from aurify.algorithms.simpo import SimPO
from aurify.engine.engine import Engine
from aurify.models.model import LoadedModel
from aurify.types import prepared

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.experimental.tpo import TPOConfig, TPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves


def dpo_trainer(model: LoadedModel, reference: LoadedModel, tmp_path: Any, size: int = 3, **options: Any) -> Any:
    return trl.DPOTrainer(
        model=copy.deepcopy(model.module),
        ref_model=reference.module,
        args=trl.DPOConfig(**arguments(tmp_path, per_device_train_batch_size=size, **options)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=model.tokenizer,
    )


DPO_CASES: dict[str, tuple[dict[str, Any], DPO]] = {
    "sigmoid": ({"loss_type": ["sigmoid"]}, DPO()),
    "sigmoid, beta 1": ({"loss_type": ["sigmoid"], "beta": 1.0}, DPO(beta=1.0)),
    "sigmoid_norm": ({"loss_type": ["sigmoid_norm"], "beta": 5.0}, DPO(loss_type="sigmoid_norm", beta=5.0)),
    "robust": (
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        DPO(loss_type="robust", label_smoothing=0.1),
    ),
    "hinge": ({"loss_type": ["hinge"]}, DPO(loss_type="hinge")),
    "ipo": ({"loss_type": ["ipo"]}, DPO(loss_type="ipo")),
    "apo_zero": ({"loss_type": ["apo_zero"]}, DPO(loss_type="apo_zero")),
    "apo_down": ({"loss_type": ["apo_down"]}, DPO(loss_type="apo_down")),
    "nca": ({"loss_type": ["nca_pair"]}, DPO(loss_type="nca")),
    "bco": ({"loss_type": ["bco_pair"]}, DPO(loss_type="bco")),
    "sppo": ({"loss_type": ["sppo_hard"]}, DPO(loss_type="sppo")),
    "exo": ({"loss_type": ["exo_pair"], "label_smoothing": 1e-3}, DPO(loss_type="exo")),
    "discopop": ({"loss_type": ["discopop"]}, DPO(loss_type="discopop")),
    "forward KL": ({"f_divergence_type": "forward_kl"}, DPO(divergence="forward_kl")),
    "Jensen-Shannon": ({"f_divergence_type": "js_divergence", "beta": 1.0}, DPO(divergence="js", beta=1.0)),
    "alpha": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        DPO(divergence="alpha", divergence_alpha=0.7),
    ),
    "alpha, ipo": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7, "loss_type": ["ipo"]},
        DPO(divergence="alpha", divergence_alpha=0.7, loss_type="ipo"),
    ),
    "length alpha": ({"loss_type": ["sigmoid"], "ld_alpha": 0.3}, DPO(length_alpha=0.3)),
    "length alpha, ipo": ({"loss_type": ["ipo"], "ld_alpha": 0.3}, DPO(loss_type="ipo", length_alpha=0.3)),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo(tmp_path, case):
    options, algorithm = DPO_CASES[case]
    model, reference = sharp_model(1), sharp_model(2)
    trainer = dpo_trainer(model, reference, tmp_path, **options)
    oracle = whole_loss(trainer)
    engine = Engine(model)
    metrics = engine.forward_backward(with_reference(pair_data(), reference), algorithm)
    compare(engine, metrics["loss"], trainer.model, oracle)


def test_dpo_with_sft_term(tmp_path):
    """In batches of one pair, where the mean over tokens is the mean over the one completion."""
    model, reference = sharp_model(1), sharp_model(2)
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    trainer = dpo_trainer(model, reference, tmp_path, size=1, **options)
    oracle = whole_loss(trainer)
    engine = Engine(model)
    metrics = engine.forward_backward(with_reference(pair_data(), reference), DPO(sft_coef=0.5))
    compare(engine, metrics["loss"], trainer.model, oracle)


def test_trl_ignores_label_smoothing_of_the_sigmoid_loss(tmp_path):
    """In "robust" the flipped loss is subtracted; ours adds it. (1 - 2e) robust = (1 - e) a - e b, where a is TRL's
    own sigmoid loss: so b, and from both what a smoothed loss has to be."""
    model, reference = sharp_model(1), sharp_model(2)
    e = 0.2

    def theirs(loss_type: str, smoothing: float) -> float:
        trainer = dpo_trainer(model, reference, tmp_path, loss_type=[loss_type], label_smoothing=smoothing)
        return float(whole_loss(trainer).detach())

    straight, smoothed = theirs("sigmoid", 0.0), theirs("sigmoid", e)
    assert smoothed == straight
    flipped = ((1 - e) * straight - (1 - 2 * e) * theirs("robust", e)) / e
    data = with_reference(pair_data(), reference)
    ours = Engine(model).forward_backward(data, DPO(label_smoothing=e))["loss"]
    assert ours == pytest.approx((1 - e) * straight + e * flipped, rel=TOLERANCE)
    assert abs(ours - straight) > 1e-2


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_aot(tmp_path, paired, smoothing):
    """In one micro-batch for TRL, in three for us: ranks are those of the step."""
    model, reference = sharp_model(1), sharp_model(2)
    options = {"loss_type": ["aot" if paired else "aot_unpaired"], "label_smoothing": smoothing}
    trainer = dpo_trainer(model, reference, tmp_path, **options)
    oracle = whole_loss(trainer)
    engine = Engine(model, micro_batch_tokens=1)
    algorithm = AOT(paired=paired, label_smoothing=smoothing)
    data = prepared(algorithm, with_reference(pair_data(), reference), engine)
    compare(engine, engine.forward_backward(data, algorithm)["loss"], trainer.model, oracle)


CPO_CASES: dict[str, tuple[int, dict[str, Any], CPO | SimPO]] = {
    "cpo": (1, {"loss_type": "sigmoid", "cpo_alpha": 1.0}, CPO()),
    "cpo without NLL": (3, {"loss_type": "sigmoid", "cpo_alpha": 0.0}, CPO(sft_coef=0.0)),
    "cpo, smoothed": (1, {"cpo_alpha": 0.5, "label_smoothing": 0.1}, CPO(sft_coef=0.5, label_smoothing=0.1)),
    "hinge": (3, {"loss_type": "hinge", "cpo_alpha": 0.0}, CPO(loss_type="hinge", sft_coef=0.0)),
    "ipo": (1, {"loss_type": "ipo"}, CPO(loss_type="ipo")),
    "alphapo": (
        3,
        {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.25, "label_smoothing": 0.1},
        SimPO(alpha=0.25, gamma=0.25, label_smoothing=0.1),
    ),
    "simpo": (3, {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0.0}, SimPO()),
    "simpo, NLL": (
        1,
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.3},
        SimPO(beta=2.0, gamma=1.0, sft_coef=0.3),
    ),
}


@pytest.mark.parametrize("case", CPO_CASES)
def test_cpo_and_simpo(tmp_path, case):
    size, options, algorithm = CPO_CASES[case]
    config = CPOConfig(**arguments(tmp_path, per_device_train_batch_size=size, **options))
    compare_without_reference(CPOTrainer, config, ROWS, algorithm)


def compare_without_reference(kind: Any, config: Any, rows: list[dict[str, str]], algorithm: CPO | SimPO) -> None:
    model = sharp_model(1)
    trainer = kind(
        model=copy.deepcopy(model.module),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    oracle = whole_loss(trainer)
    engine = Engine(model)
    compare(engine, engine.forward_backward(pair_data(), algorithm)["loss"], trainer.model, oracle)


TPO_CASES: dict[str, tuple[int, dict[str, Any], CPO | SimPO]] = {
    "tpo": (1, {"beta": 0.1, "label_smoothing": 0.1}, CPO(label_smoothing=0.1)),
    "hinge": (3, {"loss_type": "hinge", "beta": 0.1, "tpo_alpha": 0.0}, CPO(loss_type="hinge", sft_coef=0.0)),
    "ipo": (1, {"loss_type": "ipo", "beta": 0.1, "tpo_alpha": 0.5}, CPO(loss_type="ipo", sft_coef=0.5)),
    "tpo-l": (1, {"loss_type": "tpo-l", "beta": 2.5, "tpo_l_gamma": 1.375}, SimPO(sft_coef=1.0)),
}


@pytest.mark.parametrize("case", TPO_CASES)
def test_tpo_whose_gold_answer_is_the_chosen_one(tmp_path, case):
    """TPO imitates a third answer. Where that is the chosen one, it is CPO, and its tpo-l is SimPO with NLL."""
    size, options, algorithm = TPO_CASES[case]
    config = TPOConfig(**arguments(tmp_path, per_device_train_batch_size=size, **options))
    compare_without_reference(TPOTrainer, config, [{**row, "reference": row["chosen"]} for row in ROWS], algorithm)


def test_orpo(tmp_path):
    """The odds ratio is TRL's; the NLL is over the completion alone. TRL's whole loss is the same odds ratio and an NLL
    over prompt and completion, which an SFT on all tokens of the chosen ones gives."""
    model = sharp_model(1)
    trainer = ORPOTrainer(
        model=copy.deepcopy(model.module),
        args=ORPOConfig(**arguments(tmp_path, per_device_train_batch_size=3)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
    penalty = -trainer.odds_ratio_loss(chosen, rejected)[0].mean()

    whole = float(trainer.compute_loss(trainer.model, batch).detach())
    everything = [replace(one, weights=[0.0] + [1.0] * (len(one.tokens) - 1)) for one in pair_data()[::2]]
    nll = Engine(sharp_model(1)).forward_backward(everything, SFT())["loss"]
    assert whole == pytest.approx(nll + float(penalty.detach()), rel=TOLERANCE)

    engine = Engine(model)
    metrics = engine.forward_backward(pair_data(), ORPO())
    compare(engine, metrics["loss"], trainer.model, penalty - chosen.mean())


class TwoModels:
    """The policy and another model as its reference."""

    def __init__(self, policy: Engine, reference: Engine) -> None:
        self.engines = (policy, reference)

    def logprobs(self, data: Any, *, reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        return self.engines[reference].logprobs(data, temperature=temperature)

    def entropies(self, data: Any, *, temperature: float = 1.0) -> list[list[float]]:
        return self.engines[0].entropies(data, temperature=temperature)

    def over_ranks(self, values: Sequence[float]) -> list[float]:
        return self.engines[0].over_ranks(values)


KTO_CASES: dict[str, tuple[dict[str, Any], KTO]] = {
    "kto": ({}, KTO()),
    "weights": (
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7),
    ),
    "apo_zero_unpaired": ({"loss_type": "apo_zero_unpaired"}, KTO(loss_type="apo_zero_unpaired")),
}


@pytest.mark.parametrize(("policy", "reference"), [(1, 2), (2, 1)], ids=["", "swapped"])
@pytest.mark.parametrize("case", KTO_CASES)
def test_kto(tmp_path, case, policy, reference):
    """Six labelled rows in one batch, neighbours with different prompts. For one of the two orders of models the
    divergence is above 0, for the other one it is clamped."""
    options, algorithm = KTO_CASES[case]
    model, other = sharp_model(policy), sharp_model(reference)
    rows = [(prompt, texts[k], k == 0) for k in (0, 1) for prompt, *texts in PAIRS]
    config = trl.KTOConfig(
        **arguments(tmp_path, per_device_train_batch_size=6, train_sampling_strategy="sequential", **options)
    )
    trainer = trl.KTOTrainer(
        model=copy.deepcopy(model.module),
        ref_model=other.module,
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": p, "completion": c, "label": x} for p, c, x in rows]),
        processing_class=model.tokenizer,
    )
    oracle = whole_loss(trainer)

    engine = Engine(model)
    data = with_reference([datum(p, c, label=1.0 if x else -1.0) for p, c, x in rows], other)
    data = algorithm.prepare(data, TwoModels(engine, Engine(other, trainable=False)), 1.0)
    metrics = engine.forward_backward(data, algorithm)
    assert (metrics["loss/divergence"] > 0) == ((algorithm.loss_type, policy) == ("kto", 1))
    compare(engine, metrics["loss"], trainer.model, oracle)

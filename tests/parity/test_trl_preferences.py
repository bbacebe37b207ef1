"""TRL 1.16 as an oracle for the preference family: on the same batch and the same weights, its losses and gradients are
ours. Where TRL departs from a paper, a test shows by how much, and that we follow the paper:

- DPO's added SFT term, CPO and ORPO: TRL takes the NLL over all tokens of a micro-batch, the papers (and we) over each
  completion first. Compared in batches of one pair, where the two are the same.
- ORPO: TRL's NLL also covers the prompt.
- CPO's trainer adds an NLL of weight 1 to SimPO unless cpo_alpha is 0.
- DPO "sigmoid" and "sigmoid_norm": TRL ignores label smoothing there. What it should be is TRL's "robust" undone.
- KTO: TRL estimates the divergence in each micro-batch, we over the step; TRL takes the completion before even where it
  answers the same prompt. Compared with one micro-batch a step, in which it does not.

Not in Aurify: aot, aot_unpaired (they sort over the micro-batch), discopop, WPO weighting, other f-divergences."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from aurify.algorithms.cpo import CPO
from aurify.algorithms.dpo import DPO
from aurify.algorithms.kto import KTO
from aurify.algorithms.orpo import ORPO
from aurify.algorithms.sft import SFT
from aurify.algorithms.simpo import SimPO
from aurify.engine.engine import Engine
from aurify.engine.model import LoadedModel, tiny_model
from aurify.types import Datum

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'aurify[bench]'")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'aurify[bench]'")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves
TOLERANCE = 1e-4
TOKENIZER = tiny_model().tokenizer
PAIRS = [
    ("What is 3 + 4?", "7", "It could be 34."),
    ("Name a colour of the sky, please.", "It is blue, mostly.", "No"),
    ("Say hi", "hi there, how are you?", "hi"),
]
ROWS = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]


def sharp_model(seed: int) -> LoadedModel:
    """Larger weights than the initial ones, with which every distribution is nearly flat."""
    model = tiny_model(seed=seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model


def arguments(tmp_path: Any, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }


def datum(prompt: str, answer: str, **options: Any) -> Datum:
    before, after = TOKENIZER.encode(prompt), TOKENIZER.encode(answer + TOKENIZER.eos_token)
    return Datum(before + after, [0.0] * len(before) + [1.0] * len(after), **options)


def pair_data() -> list[Datum]:
    return [datum(prompt, text, unit=unit) for unit, (prompt, *texts) in enumerate(PAIRS) for text in texts]


def with_reference(data: list[Datum], reference: LoadedModel) -> list[Datum]:
    known = Engine(reference, trainable=False).logprobs(data)
    return [replace(one, ref_logprobs=values) for one, values in zip(data, known, strict=True)]


def gradients(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def compare(model: LoadedModel, loss: float, oracle_module: Any, oracle_loss: torch.Tensor) -> None:
    """The losses, and the gradient of every weight."""
    assert abs(float(oracle_loss.detach())) > 1e-3, "a loss of nothing compares nothing"
    assert loss == pytest.approx(float(oracle_loss.detach()), abs=TOLERANCE, rel=TOLERANCE)
    oracle_loss.backward()
    ours, theirs = gradients(model.module), gradients(oracle_module)
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < TOLERANCE, f"{name}: relative error {float(error):.1e}"


def whole_loss(trainer: Any) -> torch.Tensor:
    """The mean over TRL's micro-batches."""
    trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, batch) for batch in trainer.get_train_dataloader()]
    return torch.stack(losses).mean()


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
    "length alpha": ({"loss_type": ["sigmoid"], "ld_alpha": 0.3}, DPO(length_alpha=0.3)),
    "length alpha, ipo": ({"loss_type": ["ipo"], "ld_alpha": 0.3}, DPO(loss_type="ipo", length_alpha=0.3)),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo(tmp_path, case):
    options, algorithm = DPO_CASES[case]
    model, reference = sharp_model(1), sharp_model(2)
    trainer = dpo_trainer(model, reference, tmp_path, **options)
    oracle = whole_loss(trainer)
    metrics = Engine(model).forward_backward(with_reference(pair_data(), reference), algorithm)
    compare(model, metrics["loss"], trainer.model, oracle)


def test_dpo_with_sft_term(tmp_path):
    """In batches of one pair, where the mean over tokens is the mean over the one completion."""
    model, reference = sharp_model(1), sharp_model(2)
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    trainer = dpo_trainer(model, reference, tmp_path, size=1, **options)
    oracle = whole_loss(trainer)
    metrics = Engine(model).forward_backward(with_reference(pair_data(), reference), DPO(sft_coef=0.5))
    compare(model, metrics["loss"], trainer.model, oracle)


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


CPO_CASES: dict[str, tuple[int, dict[str, Any], CPO | SimPO]] = {
    "cpo": (1, {"loss_type": "sigmoid", "cpo_alpha": 1.0}, CPO()),
    "cpo without NLL": (3, {"loss_type": "sigmoid", "cpo_alpha": 0.0}, CPO(sft_coef=0.0)),
    "cpo, smoothed": (1, {"cpo_alpha": 0.5, "label_smoothing": 0.1}, CPO(sft_coef=0.5, label_smoothing=0.1)),
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
    model = sharp_model(1)
    trainer = CPOTrainer(
        model=copy.deepcopy(model.module),
        args=CPOConfig(**arguments(tmp_path, per_device_train_batch_size=size, **options)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=model.tokenizer,
    )
    oracle = whole_loss(trainer)
    compare(model, Engine(model).forward_backward(pair_data(), algorithm)["loss"], trainer.model, oracle)


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

    metrics = Engine(model).forward_backward(pair_data(), ORPO())
    compare(model, metrics["loss"], trainer.model, penalty - chosen.mean())


class TwoModels:
    """The policy and another model as its reference."""

    def __init__(self, policy: Engine, reference: Engine) -> None:
        self.engines = (policy, reference)

    def logprobs(self, data: Any, *, reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        return self.engines[reference].logprobs(data, temperature=temperature)

    def entropies(self, data: Any, *, temperature: float = 1.0) -> list[list[float]]:
        return self.engines[0].entropies(data, temperature=temperature)


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
    compare(model, metrics["loss"], trainer.model, oracle)

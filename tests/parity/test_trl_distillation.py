"""TRL 1.16 as an oracle for distillation over the whole vocabulary: on the same batch and the same two models, its
losses and gradients are ours. Its `beta` names the divergence: 0 forward, 1 reverse, the generalised Jensen-Shannon
divergence in between, where the mixture and the weights are the paper's (and ours). That one tends to 0 at either end,
so TRL's loss jumps there; ours has three names, and a beta for the third alone.

DistillationTrainer divides the logits of both models by the temperature of sampling, as we do. GKDTrainer samples at it
and compares at 1, as the paper does: with us, at temperature 1 alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from trl_oracle import PAIRS, TOKENIZER, arguments, compare, datum, sharp_model

from aurify.algorithms.distillation import Distillation
from aurify.engine.engine import Engine
from aurify.models.model import LoadedModel, tiny_model
from aurify.types import Datum, Metrics

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
gkd = pytest.importorskip("trl.experimental.gkd")

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves
KINDS = [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.1)]  # ours, TRL's beta
ANSWERS = [(prompt, text) for prompt, *texts in PAIRS for text in texts]


@pytest.fixture
def student() -> LoadedModel:
    return sharp_model(seed=1)


@pytest.fixture
def teacher() -> LoadedModel:
    """Half as wide as the student."""
    model = tiny_model(seed=5, hidden_size=32)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model


def distilled(
    student: LoadedModel, teacher: LoadedModel, kind: str, beta: float, **options: Any
) -> tuple[Engine, Metrics]:
    algorithm = Distillation(divergence=kind, beta=beta if kind == "jsd" else 0.5)  # type: ignore[arg-type]
    engine = Engine(student)
    engine.follow(Engine(teacher, trainable=False))
    data = [one(prompt, text) for prompt, text in ANSWERS]
    return engine, engine.forward_backward(data, algorithm, **options)


def one(prompt: str, text: str) -> Datum:
    plain = datum(prompt, text)
    return datum(prompt, text, advantages=[1.0] * len(plain.tokens))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask."""
    pad = {"batch_first": True, "padding_side": side}
    return pad_sequence(rows, **pad), pad_sequence([torch.ones_like(row) for row in rows], **pad)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_distillation_trainer(student, teacher, kind, beta, temperature, tmp_path):
    module = copy.deepcopy(student.module)
    trainer = trl.DistillationTrainer(
        model=module,
        teacher_model=copy.deepcopy(teacher.module),
        args=trl.DistillationConfig(**arguments(tmp_path, beta=beta, temperature=temperature)),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt, *_ in PAIRS]),
        processing_class=TOKENIZER,
    )
    prompts, completions = [], []
    for row in (datum(*answer) for answer in ANSWERS):
        start = row.weights.index(1.0)
        prompts.append(torch.tensor(row.tokens[:start]))
        completions.append(torch.tensor(row.tokens[start:]))
    batch: dict[str, Any] = {}
    batch["prompt_ids"], batch["prompt_mask"] = padded(prompts, "left")
    batch["completion_ids"], batch["completion_mask"] = padded(completions, "right")
    trainer.model.train()
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    expected = trainer.compute_loss(trainer.model, batch)
    engine, told = distilled(student, teacher, kind, beta, temperature=temperature)
    assert told["loss/divergence"] == pytest.approx(told["loss"])
    compare(engine, told["loss"], module, expected)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_gkd_trainer_compares_at_temperature_one(student, teacher, kind, beta, tmp_path):
    module = copy.deepcopy(student.module)
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in ANSWERS]
    trainer = gkd.GKDTrainer(
        model=module,
        teacher_model=copy.deepcopy(teacher.module),
        args=gkd.GKDConfig(**arguments(tmp_path, beta=beta, temperature=0.7, lmbda=0.0, max_length=200)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    data = [datum(*answer) for answer in ANSWERS]
    batch: dict[str, Any] = {}
    batch["input_ids"], batch["attention_mask"] = padded([torch.tensor(d.tokens) for d in data], "right")
    weights = pad_sequence([torch.tensor(d.weights) for d in data], batch_first=True)
    batch["labels"] = torch.where(weights == 1, batch["input_ids"], -100)
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, batch, num_items_in_batch=weights.sum())
    engine, told = distilled(student, teacher, kind, beta)
    compare(engine, told["loss"], module, expected)


def test_towards_its_ends_the_divergence_of_the_paper_shrinks_and_trl_jumps(student, teacher):
    """It is `beta` times forward at one, `1 - beta` times reverse at the other."""
    logits = [torch.randn(5, 9, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    for name, end, beta in (("forward", 0.0, 1e-3), ("reverse", 1.0, 1 - 1e-3)):
        (_, near), (_, there) = (distilled(student, teacher, *kind) for kind in (("jsd", beta), (name, end)))
        assert near["loss"] == pytest.approx(1e-3 * there["loss"], rel=0.05)
        almost, jumped = (gkd.GKDTrainer.generalized_jsd_loss(*logits, beta=value) for value in (beta, end))
        assert float(almost) == pytest.approx(1e-3 * float(jumped), rel=0.05)

"""What the tests against TRL share: its arguments, a few texts, models that are not nearly flat, and the comparison of
a loss and its gradients. Where TRL is not installed, importing this skips a test file."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from aurify.engine.engine import Engine
from aurify.models.model import LoadedModel, ModelConfig, load_model, tiny_model
from aurify.types import Datum

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'aurify[bench]'")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'aurify[bench]'")

TOLERANCE = 1e-4
TOKENIZER = tiny_model().tokenizer
PAIRS = [
    ("What is 3 + 4?", "7", "It could be 34."),
    ("Name a colour of the sky, please.", "It is blue, mostly.", "No"),
    ("Say hi", "hi there, how are you?", "hi"),
]
ROWS = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]


def sharp_model(seed: int, **options: Any) -> LoadedModel:
    """Larger weights: with the initial ones every distribution is nearly flat, and many mistakes would not show. In
    float32, where two right ways differ by less than TOLERANCE."""
    model = load_model(ModelConfig("random:tiny", dtype="float32"), seed=seed, **options)
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


def pair_data(margins: tuple[float, ...] = (0.0, 0.0, 0.0)) -> list[Datum]:
    return [
        datum(prompt, text, unit=unit, margin=margins[unit])
        for unit, (prompt, *texts) in enumerate(PAIRS)
        for text in texts
    ]


def with_reference(data: list[Datum], reference: LoadedModel) -> list[Datum]:
    known = Engine(reference, trainable=False).logprobs(data)
    return [replace(one, ref_logprobs=values) for one, values in zip(data, known, strict=True)]


def whole_loss(trainer: Any) -> torch.Tensor:
    """The mean over TRL's micro-batches."""
    trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, batch) for batch in trainer.get_train_dataloader()]
    return torch.stack(losses).mean()


def compare(engine: Engine, loss: float, oracle_module: Any, oracle_loss: torch.Tensor) -> None:
    """The losses, and the gradient of every weight."""
    assert abs(float(oracle_loss.detach())) > 1e-3, "a loss of nothing compares nothing"
    assert loss == pytest.approx(float(oracle_loss.detach()), abs=TOLERANCE, rel=TOLERANCE)
    compare_gradients(engine, oracle_module, oracle_loss)


def compare_gradients(engine: Engine, oracle_module: Any, oracle_loss: torch.Tensor) -> None:
    oracle_loss.backward()
    ours, theirs = gradients(engine.module), gradients(oracle_module)
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < TOLERANCE, f"{name}: relative error {float(error):.1e}"
    assert engine.optim_step(1e-3)["optim/grad_norm"] > 0


def gradients(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

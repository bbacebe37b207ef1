"""What the cases of correctness share: findings and their bounds, plain engines to compare with, and distributions.

In bf16 nothing is compared with a constant alone: two right ways of computing differ as well. Plain rows are computed
in two ways (a padded batch by SDPA; one by one by the model's eager attention), and what is tested may lie FACTOR times
as far from the first way as the second does, plus what is rounding in any case."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gpu_models import Card
from torch import Tensor

from aurify.engine import attention
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.engine.packing import pack_row
from aurify.models.model import LoadedModel

FACTOR = 3.0  # of KL, which grows with the square: FACTOR**2
FLOORS = {"float32": 2e-5, "bfloat16": 1e-2}  # of log-probs, and of gradients relative to their norm
WHOLE_ROW = 1 << 20  # tokens of a micro-batch that holds everything
LORA = LoraConfig(rank=8, alpha=16.0)


class Skipped(Exception):
    """The case cannot be run here; the text says why."""


@dataclass
class Finding:
    """What a case measured, as JSON values, and every statement that does not hold."""

    measured: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    told: str = ""  # in a line of the table

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def expect_close(self, where: str, found: dict[str, float], usual: dict[str, float], dtype: str) -> None:
        """found: how far from the first plain way; usual: how far the second one is."""
        for name, value in found.items():
            square = name.startswith("kl")
            floor = FLOORS[dtype] ** 2 if square else FLOORS[dtype]
            bound = (FACTOR**2 if square else FACTOR) * usual[name] + floor
            self.expect(
                value <= bound, f"{where}: {name} {value:.2g} is above {bound:.2g} (two plain ways: {usual[name]:.2g})"
            )


def copy_model(model: LoadedModel, implementation: str | None = None) -> LoadedModel:
    module = copy.deepcopy(model.module)
    if implementation is not None:
        module.config._attn_implementation = implementation
    return replace(model, module=module)


def plain_engines(model: LoadedModel, **options: Any) -> tuple[Engine, Engine]:
    """Two ways to compute plain rows: all in one padded batch; one after the other, by eager attention."""
    padded = Engine(copy_model(model), packing=False, micro_batch_tokens=WHOLE_ROW, checkpointing=False, **options)
    single = copy_model(model, "eager")
    return padded, Engine(single, packing=False, micro_batch_tokens=1, checkpointing=False, **options)


def force_path(engine: Engine, path: str) -> None:
    settle = getattr(engine.body, "_settle", None)
    if settle is None:
        raise Skipped(f"this version has no way to force the attention path {path!r}")
    settle(path, "")


def path_of(engine: Engine) -> str:
    return str(getattr(engine.body, "path", "packed" if engine.body.packs else "plain"))


def expect_packed(finding: Finding, engine: Engine, card: Card, forced: str | None = None) -> None:
    """Whether rows are packed at all, after the engine's own check at first use."""
    path = path_of(engine)
    reason = getattr(engine.body, "reason", "") or "see the warning above"
    finding.measured["path"], finding.measured["reason"] = path, getattr(engine.body, "reason", "")
    finding.told = path
    finding.expect(engine.body.packs, f"packed rows refused: {reason}")
    best = getattr(attention, "LADDERS", {}).get(card.device.type, (path,))[0]
    if path not in (best, "plain", forced):
        finding.told += f" (not {best}: {reason})"


def distributions(engine: Engine, sequences: list[list[int]], *, share: bool) -> Tensor:
    """Log-probs [tokens, vocabulary] of all sequences, one after the other; by the kernels of training."""
    row = pack_row(sequences, range(len(sequences)), share=share)
    hidden = engine.body.hidden(row).detach()
    assert engine.head is not None
    nodes = torch.from_numpy(np.concatenate(row.nodes)).to(hidden.device)
    with torch.no_grad():
        return engine.head.logits(hidden.index_select(0, nodes)).log_softmax(-1)

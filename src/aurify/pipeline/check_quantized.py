"""Whether what a stage trains can be trained on a base in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aurify.errors import UserError
from aurify.models.quantize import choose_quantization
from aurify.models.quantized_linear import import_bitsandbytes
from aurify.pipeline.plan import PlannedStage
from aurify.pipeline.recipe import OfflineStage, OnlineStage, read_stage_reference

if TYPE_CHECKING:
    from aurify.models.loading import ModelFiles


def check_quantized(
    options: OfflineStage | OnlineStage, files: ModelFiles | None, earlier: Mapping[str, PlannedStage]
) -> str | None:
    """How the stage's base is quantised. files: of its model; None if an earlier stage makes it."""
    asked, target = options.model.quantize, read_stage_reference(options.model.name)
    if files is not None:
        kind = choose_quantization(asked, files)
    else:
        trained = earlier[target or ""].quantized
        if asked is not None and trained not in (None, asked):
            raise UserError(f"model.quantize: {asked!r}, but '@{target}' is trained on a base in {trained}; give that")
        kind = asked or trained
    if kind is not None and options.lora is None:
        raise UserError(
            f"model.quantize: weights in {kind} cannot be trained, and without lora all are; add `lora: {{rank: 16}}`, "
            "or take a model that is not quantised"
        )
    if kind is not None or options.optim.kind != "adamw":
        import_bitsandbytes()
    return kind

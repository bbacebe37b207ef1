"""CISPO (MiniMax-M1, arXiv 2506.13585): the ratio is capped and has no gradient, so that no token is ever left out:

    -sg(min(rho, max_ratio)) A log pi

max_ratio must be given (ScaleRL recommends 5): TRL reads it from a field whose default, 0.2, shrinks every gradient by
five."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from aurify.algorithms.effects import NEVER, Effects
from aurify.algorithms.grpo import GRPO
from aurify.bounds import Gt
from aurify.errors import UserError
from aurify.types import Batch, Outputs


@dataclass(frozen=True)
class CISPO(GRPO):
    # cap of the ratio; to be given
    max_ratio: Annotated[float, Gt(1), "an absolute cap; 5 is usual"] | None = None

    effects: ClassVar[Effects] = dict.fromkeys(
        ("surrogate", "clip_low", "clip_high", "dual_clip", "covariance_kl_coef"), NEVER
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_ratio is None:
            raise UserError("max_ratio: it must be given, a number above 1 (an absolute cap; 5 is usual)")

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None
        capped = ratio.detach().clamp(max=self.max_ratio)
        metrics = {"loss/clip_high": (ratio.detach() > capped).float()}
        return -capped * batch.advantages * out.logprobs, metrics

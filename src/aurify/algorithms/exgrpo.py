"""ExGRPO (arXiv 2510.02245): GRPO over groups that hold a past success of the policy beside its answers of now.

    policy's tokens of now   -rho A, or clipped as in GRPO (clip_on_policy)
    replayed tokens          -f(w) A with the true ratio w = pi / pi_then and f(w) = w / (w + 0.1), without clipping

w f'(w) is 0.0826 at w = 1 and 0.25 at w = 0.1: a fresh memory teaches a twelfth of an answer of now, and tokens that
have become less likely since teach most. It extends LUFFY, so that a guide's tokens in the same groups are treated as
there. The reference clips until its buffer starts; here that is one choice for the whole stage. `shape` bends both; the
bends are `replay_gamma` here and `gamma` for a guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aurify.algorithms.effects import Effect, Effects
from aurify.algorithms.luffy import BENT, LUFFY, shape_probability
from aurify.bounds import PositiveFloat
from aurify.types import Batch, Need, Outputs


@dataclass(frozen=True)
class ExGRPO(LUFFY):
    replay_gamma: PositiveFloat = 0.1  # the gamma of replayed tokens

    stage_needs: ClassVar[tuple[str, ...]] = ("replay",)
    effects: ClassVar[Effects] = {
        "shape": Effect(lambda a: True, "", "replay"),
        "replay_gamma": Effect(lambda a: a.shape in BENT, "with a shape that has one", "replay"),
    }

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"old_logprobs"}

    def surrogate_losses(self, out: Outputs, batch: Batch, ratio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.advantages is not None and batch.old_logprobs is not None
        losses, metrics = super().surrogate_losses(out, batch, ratio)
        replayed = batch.written_by("replay")
        change = out.logprobs - batch.old_logprobs
        losses = torch.where(
            replayed, -shape_probability(change, self.shape, self.replay_gamma) * batch.advantages, losses
        )
        return losses, {name: torch.where(replayed, 0.0, values) for name, values in metrics.items()} | {
            "loss/replay_share": replayed.float(),
            "loss/replay_ratio": replayed * change.detach().clamp(-20, 20).exp(),
        }

"""AdamW on fp32 master weights, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aurify.errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0  # where linear and cosine end, as a share of lr
    weight_decay: float = 0.0  # on matrices only
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0 = no clipping

    def __post_init__(self) -> None:
        for name, valid in (("lr", self.lr > 0), ("warmup_steps", self.warmup_steps >= 0), ("eps", self.eps > 0)):
            if not valid:
                raise UserError(f"optim.{name}: {getattr(self, name)!r} is out of range; give a positive number")


def lr_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of step 0 .. total_steps - 1: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    falling = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        config.schedule
    ]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * falling)


class MasterAdamW:
    """AdamW that keeps an fp32 copy of every parameter of lower precision: updates smaller than a bf16 step would
    be lost.

    Parameters that are fp32 already are their own master. Gradients of several backward passes add up in the
    masters' fp32 gradients (`collect`), so that accumulation does not round either."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]
        decayed = [m for m in self.masters if m.ndim >= 2]
        others = [m for m in self.masters if m.ndim < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def collect(self, grads: Sequence[Tensor | None] | None = None) -> None:
        """Adds gradients, one for each parameter, to those of the masters. Without `grads` those that a backward pass
        has left in the parameters."""
        if grads is None:
            grads = [None if p is m else p.grad for p, m in zip(self.parameters, self.masters, strict=True)]
        for parameter, master, grad in zip(self.parameters, self.masters, grads, strict=True):
            if grad is not None:
                if master.grad is None:
                    master.grad = grad.float()
                else:
                    master.grad += grad
            if parameter is not master:
                parameter.grad = None

    @property
    def grads(self) -> list[Tensor]:
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clips, updates, copies the masters back, forgets the gradients. Returns the norm before clipping."""
        grads = self.grads
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            self.zero_grad()
            raise UserError(
                f"the gradient norm is {norm}: the loss or a weight is not finite. The step was not taken. "
                "Lower optim.lr, or look for rewards or log-probs that are not finite"
            )
        if 0 < self.config.max_grad_norm < norm:
            torch._foreach_mul_(grads, self.config.max_grad_norm / (norm + 1e-6))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        torch.autograd.graph.increment_version(self.masters)  # the fused kernel does not; the sampler looks at it
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        for parameter in (*self.masters, *self.parameters):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"masters": [m.detach() for m in self.masters], "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for master, parameter, saved in zip(self.masters, self.parameters, state["masters"], strict=True):
            master.copy_(saved)
            if parameter is not master:
                parameter.copy_(master)
        self.adamw.load_state_dict(state["adamw"])

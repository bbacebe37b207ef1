"""AdamW on fp32 master weights, by bitsandbytes where its moments have 8 bits or are paged, and the schedules of the
learning rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from aurify.bounds import Checked, Interval, NonNegativeInt, PositiveFloat
from aurify.errors import UserError
from aurify.models.quantized_linear import import_bitsandbytes

log = logging.getLogger("aurify")


@dataclass(frozen=True)
class OptimConfig(Checked):
    # 8bit: moments in 8 bits (arXiv 2110.02861); paged: they move to the host where a GPU has no room for them
    kind: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    lr: PositiveFloat = 1e-4  # learning rate at its highest
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the learning rate after the warm-up
    warmup_steps: NonNegativeInt = 0  # in which the learning rate rises from 0
    warmup_ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # or the share of all steps in which it does
    min_lr_ratio: float = 0.0  # where linear and cosine end, as a share of lr
    weight_decay: float = 0.0  # on matrices only
    beta1: float = 0.9  # decay of the mean of gradients (AdamW)
    beta2: float = 0.999  # decay of the mean of squared gradients
    eps: PositiveFloat = 1e-8  # added to the root of the squares
    max_grad_norm: float = 1.0  # 0 = no clipping
    max_skipped_steps: NonNegativeInt = 3  # so many steps in a row may be skipped because their gradient is not finite

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps and self.warmup_ratio:
            raise UserError(
                f"warmup_ratio: {self.warmup_ratio} and warmup_steps: {self.warmup_steps} both say how long the "
                "learning rate rises; keep one"
            )


def lr_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of step 0 .. total_steps - 1: linear warm-up, then the schedule."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        config.schedule
    ]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * falling)


class MasterAdamW:
    """AdamW that keeps an fp32 master of every parameter of lower precision, since updates smaller than a bf16 step
    would be lost. fp32 parameters are their own masters.

    Gradients of several backward passes add up in the masters' fp32 gradients (`collect`), so accumulation does not
    round either. A gradient in bf16 is added to its master's as soon as it is made.

    Bytes for a parameter of a bf16 model: 2 for the weight, 4 for its master, 8 for the moments (2 if they are in 8
    bits), 4 for the gradient."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimConfig, rows: Mapping[nn.Parameter, Tensor] | None = None
    ) -> None:
        """rows: of matrices that are trained in part, the rows that are. Only these have a master."""
        self.config = config
        self.skipped = 0  # steps in a row whose gradient was not finite
        self.parameters = list(parameters)
        self.rows = [(rows or {}).get(parameter) for parameter in self.parameters]
        self.masters = [make_master_weight(p, chosen) for p, chosen in zip(self.parameters, self.rows, strict=True)]
        decayed = [m for m in self.masters if m.ndim >= 2]
        others = [m for m in self.masters if m.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = make_adamw(groups, config, on_cpu=all(m.device.type == "cpu" for m in self.masters))
        for parameter, master, chosen in zip(self.parameters, self.masters, self.rows, strict=True):
            if parameter is not master:
                parameter.register_post_accumulate_grad_hook(partial(move_grad_to_master, master, chosen))

    def collect(self, grads: Sequence[Tensor | None] | None = None) -> None:
        """Adds gradients, one for each parameter, to those of the masters. None: a backward pass has done so."""
        if grads is not None:
            for master, grad, chosen in zip(self.masters, grads, self.rows, strict=True):
                if grad is not None:
                    add_master_grad(master, grad if chosen is None else grad[chosen])

    def held_grads(self) -> list[Tensor | None]:
        """A copy of the gradients so far, for `restore_grads`."""
        return [None if master.grad is None else master.grad.clone() for master in self.masters]

    def restore_grads(self, held: Sequence[Tensor | None] | None) -> None:
        """None: there were none."""
        self.zero_grad()
        for master, grad in zip(self.masters, held or (), strict=held is not None):
            master.grad = None if grad is None else grad.clone()

    @property
    def grads(self) -> list[Tensor]:
        return [master.grad for master in self.masters if master.grad is not None]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clips, updates, copies the masters back, forgets the gradients. Returns the norm before clipping.

        If the norm is not finite, nothing changes and `skipped` counts it: one bad batch must not end a run of hours.
        More than `max_skipped_steps` of them in a row are an error."""
        grads = self.grads
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not math.isfinite(norm):
            self.zero_grad()
            self.skipped += 1
            if self.skipped > self.config.max_skipped_steps:
                raise UserError(
                    f"the gradient norm is {norm}, and was not finite in {self.skipped} steps in a row: the loss or a "
                    "weight is not finite. These steps were not taken. Lower optim.lr, look for rewards or log-probs "
                    f"that are not finite, or raise optim.max_skipped_steps ({self.config.max_skipped_steps})"
                )
            return norm
        self.skipped = 0
        if 0 < self.config.max_grad_norm < norm:
            torch._foreach_mul_(grads, self.config.max_grad_norm / (norm + 1e-6))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        torch.autograd.graph.increment_version(self.masters)  # the fused kernel does not; the sampler looks at it
        self.copy_masters()
        self.zero_grad()
        return norm

    def copy_masters(self) -> None:
        whole = []
        for parameter, master, chosen in zip(self.parameters, self.masters, self.rows, strict=True):
            if chosen is not None:
                parameter[chosen] = master.to(parameter.dtype)
            elif parameter is not master:
                whole.append((parameter, master))
        if whole:
            parameters, masters = zip(*whole, strict=True)
            torch._foreach_copy_(list(parameters), list(masters))

    def zero_grad(self) -> None:
        for parameter in (*self.masters, *self.parameters):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        adamw = torch.optim.Optimizer.state_dict(self.adamw)  # bitsandbytes' own is wrapped, for FSDP
        masters = [m.detach() for m in self.masters]
        return {"masters": masters, "adamw": adamw, "skipped": self.skipped, "kind": self.config.kind}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """state: as saved, on the CPU (it may be a mapped file). Each tensor is copied into the one that is there, so
        the device never holds a second state."""
        if (kind := state.get("kind", "adamw")) != self.config.kind:
            raise UserError(
                f"optim.kind: {self.config.kind!r} cannot go on with the moments of {kind!r}, which are in the "
                f"checkpoint; give {kind!r}"
            )
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self.copy_masters()
        self.skipped = state.get("skipped", 0)
        moments = state["adamw"]["state"]
        groups = enumerate(self.adamw.param_groups)
        parameters = [(p, (group, p, g, k)) for g, group in groups for k, p in enumerate(group["params"])]
        if unknown := set(moments) - set(range(len(parameters))):
            raise ValueError(f"the optimiser state is of {max(unknown) + 1} parameters; here are {len(parameters)}")
        for index, (parameter, arguments) in enumerate(parameters):
            mine = self.adamw.state[parameter]
            if index in moments and not mine and self.config.kind != "adamw":
                self.adamw.init_state(*arguments)  # so that paged moments are paged again
            for name, saved in moments.get(index, {}).items():
                if isinstance(mine.get(name), Tensor):
                    mine[name].copy_(saved)
                else:  # as AdamW makes them: moments like the parameter, the count of steps beside it
                    mine[name] = saved.to(parameter.device, copy=True) if isinstance(saved, Tensor) else saved
        for group, saved_group in zip(self.adamw.param_groups, state["adamw"]["param_groups"], strict=True):
            group.update({name: value for name, value in saved_group.items() if name != "params"})


def make_adamw(groups: list[dict[str, Any]], config: OptimConfig, *, on_cpu: bool) -> Any:
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, fused=True, **options)
    kinds, paged = import_bitsandbytes().optim, config.kind.startswith("paged")
    if paged and on_cpu:
        log.warning("optim.kind: %s has nothing to page on a CPU, where all is in the host's memory", config.kind)
    if config.kind.endswith("8bit"):
        return kinds.AdamW8bit(groups, is_paged=paged and not on_cpu, **options)
    return kinds.AdamW(groups, is_paged=paged and not on_cpu, **options)


def make_master_weight(parameter: nn.Parameter, rows: Tensor | None) -> nn.Parameter:
    if rows is not None:
        return nn.Parameter(parameter.detach()[rows].float())
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def add_master_grad(master: Tensor, grad: Tensor) -> None:
    if master.grad is None:
        master.grad = grad.float()
    else:
        master.grad += grad


def move_grad_to_master(master: Tensor, rows: Tensor | None, parameter: Tensor) -> None:
    """Moves a parameter's gradient to its master at once, so that only one exists in the parameter's dtype."""
    if parameter.grad is not None:
        add_master_grad(master, parameter.grad if rows is None else parameter.grad[rows])
        parameter.grad = None

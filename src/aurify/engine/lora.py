"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers: fp32 adapters on a base of any dtype, stored in
peft's format.

The usual layer computes base(x) + s B(A x), two thin matrix products more in forward and four more in backward.
Where the base is fp32 and no dropout asks for the thin products, we keep the merged weight W + s B A instead and
compute one product, with a backward of our own that still gives the exact gradients of A and B. Trainer and sampler
then multiply by the very same matrix, so nothing needs syncing and their log-probs agree. In bf16 a merged weight
would round small updates away: there the trainer uses the plain form, and only the sampler uses a merged copy."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aurify.errors import UserError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0  # the adapter is scaled by alpha / rank
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"  # or the last parts of layer names, such as [q_proj, v_proj]

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"lora: rank {self.rank} must be at least 1 and dropout {self.dropout} in [0, 1)")


class MergedProduct(torch.autograd.Function):
    """x [n, in] times merged [out, in]; gradients of x, A [rank, in] and B [out, rank], none of the merged weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, merged: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.merged, ctx.scale = merged, scale
        return F.linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, a, b = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = (grads @ ctx.merged).view_as(x) if ctx.needs_input_grad[0] else None
        grad_a = ((grads @ b).mul_(ctx.scale)).t() @ rows
        grad_b = grads.t() @ (rows @ a.t()).mul_(ctx.scale)
        return grad_x, grad_a, grad_b, None, None, None


Use = Literal["adapter", "reference", "merged"]


class AdapterState(threading.local):
    """Shared by all adapted layers of a model. One for each thread: the sampler and the reference never disturb
    training."""

    use: Use = "adapter"


class LoraLinear(nn.Module):
    """Stands where a frozen nn.Linear stood."""

    def __init__(self, base: nn.Linear, config: LoraConfig, state: AdapterState, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.state, self.dropout = base, state, config.dropout
        self.scale = config.alpha / config.rank
        device = base.weight.device
        a = torch.empty(config.rank, base.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.reference: tuple[Tensor, Tensor] | None = None  # A and B to go back to; None: the base alone
        self.merged: Tensor | None = None

    @property
    def weight(self) -> Tensor:  # models ask their layers for dtype and device through it
        return self.base.weight

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        return (b @ a).mul_(self.scale)

    @torch.no_grad()
    def merge(self) -> None:
        """Makes the merged weight, or brings it up to date in place."""
        merged = self.base.weight.float() + self.delta(self.lora_A, self.lora_B)
        if self.merged is None:
            self.merged = merged.to(self.base.weight.dtype)
        else:
            self.merged.copy_(merged)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.base.weight, self.base.bias
        if self.state.use == "reference":
            if self.reference is None:
                return F.linear(x, weight, bias)
            return F.linear(x, (weight.float() + self.delta(*self.reference)).to(weight.dtype), bias)
        dropping = self.dropout > 0 and self.training and torch.is_grad_enabled()  # log-probs are taken without dropout
        exact = weight.dtype == torch.float32 and not dropping
        if self.merged is not None and (exact or self.state.use == "merged"):
            if not torch.is_grad_enabled():
                return F.linear(x, self.merged, bias)
            return MergedProduct.apply(x, self.lora_A, self.lora_B, self.merged, bias, self.scale)
        output = F.linear(x, weight, bias)
        dropped = F.dropout(x, self.dropout, dropping)
        thin = F.linear(dropped, self.lora_A.to(x.dtype)).mul(self.scale)
        rank, features = self.lora_B.shape[1], self.lora_B.shape[0]
        output.view(-1, features).addmm_(thin.view(-1, rank), self.lora_B.to(x.dtype).t())
        return output


@dataclass
class Adapter:
    """All adapted layers of one model."""

    config: LoraConfig
    layers: dict[str, LoraLinear]
    state: AdapterState = field(default_factory=AdapterState)

    @staticmethod
    def attach(module: nn.Module, config: LoraConfig, seed: int) -> Adapter:
        """Freezes the model and puts fresh adapters (B = 0: nothing changes yet) on the layers that
        `config.targets` names."""
        generator = torch.Generator().manual_seed(seed)
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # type: ignore[operator]
        state, layers = AdapterState(), {}
        linears = {
            name: layer
            for name, layer in module.named_modules()
            if type(layer) is nn.Linear and layer is not head and name.rpartition(".")[2] not in ("score", "lm_head")
        }
        if isinstance(config.targets, str) and config.targets != "all-linear":
            raise UserError(
                f"lora.targets: {config.targets!r} is not known; write 'all-linear' or a list of layer names"
            )
        chosen = {
            name: layer
            for name, layer in linears.items()
            if config.targets == "all-linear" or name.rpartition(".")[2] in config.targets
        }
        if not chosen:
            available = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(f"lora.targets: no layer is named {config.targets}; this model has {', '.join(available)}")
        module.requires_grad_(False)
        for name, layer in chosen.items():
            parent, _, child = name.rpartition(".")
            layers[name] = LoraLinear(layer, config, state, generator)
            setattr(module.get_submodule(parent), child, layers[name])
        return Adapter(config, layers, state)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for layer in self.layers.values() for parameter in (layer.lora_A, layer.lora_B)]

    def merge(self) -> None:
        for layer in self.layers.values():
            layer.merge()

    def merge_for_good(self, module: nn.Module) -> None:
        """Leaves plain layers with the merged weights, all of them trainable."""
        self.merge()
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            layer.base.weight.data.copy_(layer.merged)  # type: ignore[arg-type]
            setattr(module.get_submodule(parent), child, layer.base)
        module.requires_grad_(True)

    @contextmanager
    def using(self, use: Use) -> Iterator[None]:
        previous, self.state.use = self.state.use, use
        try:
            yield
        finally:
            self.state.use = previous

    def save(self, folder: Path, base_name: str, score: nn.Linear | None = None) -> None:
        """Writes the adapter as peft does; `score` is the scalar head of a reward model."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
        if score is not None:
            tensors["base_model.model.score.weight"] = score.weight.detach().cpu().contiguous()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        description = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if score is None else "SEQ_CLS",
            "base_model_name_or_path": base_name,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.layers}),
            "modules_to_save": None if score is None else ["score"],
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")

    @torch.no_grad()
    def load(self, folder: Path, score: nn.Linear | None = None) -> None:
        """Takes adapter weights that peft or `save` wrote; they also become the reference to compare with."""
        tensors = load_file(folder / WEIGHTS_FILE)
        for name, layer in self.layers.items():
            for part in ("lora_A", "lora_B"):
                key = f"base_model.model.{name}.{part}.weight"
                parameter = getattr(layer, part)
                if key not in tensors or tensors[key].shape != parameter.shape:
                    found = list(tensors[key].shape) if key in tensors else "missing"
                    raise UserError(
                        f"{folder}: adapter weight {key!r} is {found}; this model needs {list(parameter.shape)}"
                    )
                parameter.copy_(tensors.pop(key))
            layer.reference = (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
        saved_score = tensors.pop("base_model.model.score.weight", None)
        if score is not None and saved_score is not None:
            score.weight.copy_(saved_score)
        if tensors:
            raise UserError(
                f"{folder}: {len(tensors)} adapter weights fit no layer of this model, such as {next(iter(tensors))!r}"
            )


def read_config(folder: Path) -> LoraConfig:
    """The options of an adapter folder, ours or peft's."""
    values = json.loads((folder / CONFIG_FILE).read_text())
    for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias"):
        if values.get(key):
            raise UserError(f"{folder / CONFIG_FILE}: {key!r} is not supported; merge the adapter with peft first")
    targets = values["target_modules"]
    return LoraConfig(values["r"], values["lora_alpha"], values.get("lora_dropout", 0.0), targets)

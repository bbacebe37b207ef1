"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers: fp32 adapters on a base of any dtype, stored in
peft's format.

The usual layer computes base(x) and adds s B(A x). In bf16 that rounds twice: base(x) lands on the grid of bf16, and an
update smaller than half a step of that grid is lost on every token. Here the adapter's product is an operand of the
base's matrix product (`addmm`), which adds in fp32 and rounds once. Updates below a step then still move the share of
outputs that they should.

In fp32 on a CPU we keep the merged weight W + s B A instead and compute one product, with a backward of our own that
still gives the exact gradients of A and B. Elsewhere there is no second copy of a weight.

Trainer, sampler and reference take the same path. So their log-probs agree, and the log-probs of a fresh adapter are
those of its reference, bit for bit."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aurify.bounds import Checked, Interval, PositiveInt
from aurify.errors import UserError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraConfig(Checked):
    rank: PositiveInt = 16  # of the product that is added to a layer
    alpha: float = 32.0  # the adapter is scaled by alpha / rank
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # share of an adapter's inputs that is left out in training
    targets: str | list[str] = "all-linear"  # or the last parts of layer names, such as [q_proj, v_proj]


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


Use = Literal["adapter", "reference"]


class AdapterState(threading.local):
    """Shared by all adapted layers of a model. One for each thread: the sampler and the reference never disturb
    training."""

    use: Use = "adapter"
    dropping: bool = False  # dropout is on in `Engine.forward_backward` alone


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
        self.merged: Tensor | None = None  # W + s B A, where that pays
        self.rounded: tuple[Tensor, Tensor] | None = None  # A and B in the dtype of W, for passes without gradients

    @property
    def weight(self) -> Tensor:  # models ask their layers for dtype and device through it
        return self.base.weight

    @property
    def merging_pays(self) -> bool:
        """On a CPU in fp32. In bf16 the merged weight would round small updates away, and on a GPU the thin products
        cost less than the memory of a second weight."""
        return self.base.weight.dtype == torch.float32 and self.base.weight.device.type == "cpu"

    def merged_weight(self, a: Tensor, b: Tensor) -> Tensor:
        """W + s B A in the dtype of W."""
        return (self.base.weight.float() + (b @ a).mul_(self.scale)).to(self.base.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """After A or B changed: brings what was made of them up to date, in place, as a CUDA graph may read it."""
        weight = self.base.weight
        if self.merging_pays:
            merged = self.merged_weight(self.lora_A, self.lora_B)
            self.merged = merged if self.merged is None else self.merged.copy_(merged)
        elif weight.dtype != torch.float32 and self.rounded is None:
            self.rounded = self.lora_A.to(weight.dtype), self.lora_B.to(weight.dtype)
        elif self.rounded is not None:
            self.rounded[0].copy_(self.lora_A)
            self.rounded[1].copy_(self.lora_B)

    def thin(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.rounded is not None and not torch.is_grad_enabled():
            return self.rounded
        return self.lora_A.to(dtype), self.lora_B.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.base.weight, self.base.bias
        reference = self.state.use == "reference"
        dropping = self.state.dropping and self.dropout > 0 and not reference
        if self.merged is not None and not dropping:
            if reference:
                return F.linear(x, weight if self.reference is None else self.merged_weight(*self.reference), bias)
            if not torch.is_grad_enabled():
                return F.linear(x, self.merged, bias)
            return MergedProduct.apply(x, self.lora_A, self.lora_B, self.merged, bias, self.scale)
        rows = x.reshape(-1, x.shape[-1])
        if reference and self.reference is None:  # zeros, so that the same kernel runs as with the adapter
            added = x.new_zeros(len(rows), weight.shape[0])
        else:
            a, b = (each.to(x.dtype) for each in self.reference) if self.reference and reference else self.thin(x.dtype)
            dropped = F.dropout(rows, self.dropout) if dropping else rows
            added = F.linear(F.linear(dropped, a).mul(self.scale), b)
        output = torch.addmm(added, rows, weight.t()).view(*x.shape[:-1], -1)
        # not into `added`: beside a large bias a small product would be rounded away
        return output if bias is None else output + bias


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
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            layer.base.weight.data.copy_(layer.merged_weight(layer.lora_A.detach(), layer.lora_B.detach()))
            setattr(module.get_submodule(parent), child, layer.base)
        module.requires_grad_(True)

    @contextmanager
    def using(self, use: Use, *, dropping: bool = False) -> Iterator[None]:
        """For this thread."""
        previous = self.state.use, self.state.dropping
        self.state.use, self.state.dropping = use, dropping
        try:
            yield
        finally:
            self.state.use, self.state.dropping = previous

    def as_now(self) -> AbstractContextManager[None]:
        """What this thread uses now, for another thread."""
        return self.using(self.state.use, dropping=self.state.dropping)

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


def open_adapter(
    module: Any, folder: Path | None, lora: LoraConfig | None, score: nn.Linear | None, seed: int
) -> Adapter | None:
    """The adapter that is trained: a fresh one, or that of `folder`. Without `lora` the folder's is merged into the
    module, and all weights are trained."""
    if folder is None and lora is None:
        return None
    config = lora or read_config(folder)  # type: ignore[arg-type]
    if folder is not None and lora is not None:
        saved = read_config(folder)
        if (saved.rank, saved.alpha) != (lora.rank, lora.alpha):
            raise UserError(
                f"lora: rank {lora.rank} and alpha {lora.alpha} differ from the adapter in {folder} "
                f"({saved.rank}, {saved.alpha}), which this stage goes on with; give the same, or lora: null"
            )
    adapter = Adapter.attach(module, config, seed)
    if folder is not None:
        adapter.load(folder, score)
    if score is not None:
        score.requires_grad_(True)
    if lora is None:
        adapter.merge_for_good(module)
        return None
    adapter.merge()
    return adapter

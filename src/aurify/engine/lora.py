"""Low-rank layers (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353): fp32 adapters on a base of any dtype.

The usual layer computes base(x) and adds s B(A x). In bf16 that rounds twice: base(x) lands on the grid of bf16, and an
update smaller than half a step of that grid is lost on every token. Here the adapter's product is an operand of the
base's matrix product (`addmm`), which adds in fp32 and rounds once. Then an update below a step still moves the right
share of outputs.

In fp32 on a CPU we keep the merged weight W + s B A instead and compute one product, with a backward of our own that
gives the exact gradients of A and B. Elsewhere there is no second copy of a weight, and a quantised one is made anew
for each product.

Trainer, sampler and reference take the same path. So their log-probs agree, and the log-probs of a fresh adapter are
those of its reference, bit for bit."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurify.bounds import Checked, Interval, PositiveInt
from aurify.models.quantized_linear import QuantizedLinear, QuantizedProduct

Use = Literal["adapter", "reference"]


@dataclass(frozen=True)
class LoraConfig(Checked):
    rank: PositiveInt = 16  # of the product that is added to a layer
    alpha: float = 32.0  # the adapter is scaled by alpha / rank
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # share of an adapter's inputs that is left out in training
    targets: str | list[str] = "all-linear"  # or the last parts of layer names, such as [q_proj, v_proj]


class AdapterState(threading.local):
    """Shared by all adapted layers of a model. Each thread has its own, so the sampler and the reference never disturb
    training."""

    use: Use = "adapter"
    dropping: bool = False  # dropout is on in `Engine.forward_backward` alone


class Factors(NamedTuple):
    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    stretch: Tensor | None = None  # [out] what DoRA multiplies the outputs by


class MergedProduct(torch.autograd.Function):
    """x [n, in] times merged [out, in]; gradients of x, A [rank, in], B [out, rank] and
    the bias, none of the merged weight."""

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
        grad_bias = grads.sum(0) if ctx.needs_input_grad[4] else None
        return grad_x, grad_a, grad_b, None, grad_bias, None


class MergedWeight(torch.autograd.Function):
    """The merged weight itself, as the output head needs it, with the gradients of A and B."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, merged: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        return merged.view_as(merged)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        grad = grad.float() * ctx.scale
        return b.t() @ grad, grad @ a.t(), None, None


class LoraLinear(nn.Module):
    """Replaces a frozen nn.Linear, or a Conv1D of transformers, whose weight is transposed."""

    def __init__(
        self,
        base: Any,
        state: AdapterState,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        dora: bool = False,
        is_head: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.state, self.scale, self.dropout, self.is_head = base, state, scale, dropout, is_head
        outputs, inputs = self.matrix.shape
        device = base.weight.device
        a = torch.empty(rank, inputs)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.lora_magnitude = nn.Parameter(self.matrix.detach().float().norm(dim=1)) if dora else None
        self.norm: Tensor | None = None  # [out] of W + s B A, for DoRA
        self.reference: Factors | None = None  # to go back to; None: the base alone
        self.merged: Tensor | None = None  # W + s B A, if keeping it pays
        self.rounded: tuple[Tensor, Tensor] | None = None  # A and B in the dtype of W, for passes without gradients

    @property
    def weight(self) -> Tensor:  # models ask their layers for dtype and device through it
        return self.base.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype if isinstance(self.base, QuantizedLinear) else self.base.weight.dtype

    @property
    def matrix(self) -> Tensor:
        """[out, in] the base's weight"""
        return self.base.weight if isinstance(self.base, nn.Linear) else self.base.weight.t()

    @property
    def merging_pays(self) -> bool:
        """On a CPU in fp32. In bf16 the merged weight would round small updates away, and on a GPU the thin products
        cost less than the memory of a second weight, which a quantised layer is to save. The head alone is always
        merged: its product is computed by chunks, from its weight."""
        if self.is_head or isinstance(self.base, QuantizedLinear) or self.lora_magnitude is not None:
            return self.is_head
        return self.dtype == torch.float32 and self.base.weight.device.type == "cpu"

    def parameters_by_suffix(self) -> dict[str, nn.Parameter]:
        """As peft names them, after the name of the layer."""
        found = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        return found if self.lora_magnitude is None else found | {"lora_magnitude_vector": self.lora_magnitude}

    def stretch(self) -> Tensor | None:
        if self.lora_magnitude is None:
            return None
        assert self.norm is not None, "merge() comes first"
        return self.lora_magnitude / self.norm

    def factors(self) -> Factors:
        return Factors(self.lora_A, self.lora_B, self.stretch())

    def merged_weight(self, factors: Factors) -> Tensor:
        """[out, in] in the dtype of W"""
        weight = self.matrix.float() + (factors.b @ factors.a).mul_(self.scale)
        return (weight if factors.stretch is None else weight * factors.stretch[:, None]).to(self.dtype)

    @torch.no_grad()
    def plain_weight(self) -> Tensor:
        """The merged weight in the layout of the base."""
        merged = self.merged_weight(self.factors()) if self.merged is None else self.merged
        return merged if isinstance(self.base, nn.Linear) else merged.t()

    def head_weight(self) -> Tensor:
        """The weight of an adapted head, for what this thread uses."""
        if self.state.use == "reference":
            return self.base.weight if self.reference is None else self.merged_weight(self.reference)
        assert self.merged is not None
        return MergedWeight.apply(self.lora_A, self.lora_B, self.merged, self.scale)

    @torch.no_grad()
    def merge(self) -> None:
        """After A or B changed: brings what was made of them up to date, in place, as a CUDA graph may read it."""
        if self.lora_magnitude is not None:
            norm = (self.matrix.float() + (self.lora_B @ self.lora_A).mul_(self.scale)).norm(dim=1)
            self.norm = norm if self.norm is None else self.norm.copy_(norm)
        if self.merging_pays:
            merged = self.merged_weight(self.factors())
            self.merged = merged if self.merged is None else self.merged.copy_(merged)
        elif self.dtype != torch.float32 and self.rounded is None:
            self.rounded = self.lora_A.to(self.dtype), self.lora_B.to(self.dtype)
        elif self.rounded is not None:
            self.rounded[0].copy_(self.lora_A)
            self.rounded[1].copy_(self.lora_B)

    @torch.no_grad()
    def keep_reference(self) -> None:
        self.reference = Factors(*(None if each is None else each.detach().clone() for each in self.factors()))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        bias = self.base.bias
        reference = self.state.use == "reference"
        dropping = self.state.dropping and self.dropout > 0 and not reference
        if self.merged is not None and not dropping:
            if reference:
                return F.linear(x, self.matrix if self.reference is None else self.merged_weight(self.reference), bias)
            if not torch.is_grad_enabled():
                return F.linear(x, self.merged, bias)
            return MergedProduct.apply(x, self.lora_A, self.lora_B, self.merged, bias, self.scale)
        rows = x.reshape(-1, x.shape[-1])
        stretch: Tensor | None = None
        if reference and self.reference is None:  # zeros, so that the same kernel runs as with the adapter
            added = x.new_zeros(len(rows), len(self.lora_B))
        else:
            a, b, stretch = self.reference if reference and self.reference else self.factors()
            if self.rounded is not None and not reference and not torch.is_grad_enabled():
                a, b = self.rounded
            dropped = F.dropout(rows, self.dropout) if dropping else rows
            added = F.linear(F.linear(dropped, a.to(x.dtype)).mul(self.scale), b.to(x.dtype))
        if isinstance(self.base, QuantizedLinear):
            output = QuantizedProduct.apply(rows, added, self.base)
        else:
            output = torch.addmm(added, rows, self.matrix.t())
        output = output.view(*x.shape[:-1], -1)
        if stretch is not None:
            output = output * stretch.to(x.dtype)
        # not into `added`: beside a large bias a small product would be rounded away
        return output if bias is None else output + bias


class LoraEmbedding(nn.Module):
    """Replaces a frozen nn.Embedding."""

    def __init__(self, base: nn.Embedding, state: AdapterState, *, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.state, self.scale = base, state, scale
        num, width = base.weight.shape
        self.lora_A = nn.Parameter(torch.zeros(rank, num, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(width, rank, device=base.weight.device))
        self.reference: Factors | None = None
        self.merged: Tensor | None = None  # never: few of its rows are read

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def parameters_by_suffix(self) -> dict[str, nn.Parameter]:
        return {"lora_embedding_A": self.lora_A, "lora_embedding_B": self.lora_B}

    @torch.no_grad()
    def plain_weight(self) -> Tensor:
        added = (self.lora_B @ self.lora_A).t() * self.scale
        return (self.base.weight.float() + added).to(self.base.weight.dtype)

    def merge(self) -> None:
        pass

    def keep_reference(self) -> None:
        self.reference = Factors(self.lora_A.detach().clone(), self.lora_B.detach().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.base(tokens)
        if self.state.use == "reference":
            if self.reference is None:
                return rows
            a, b, _ = self.reference
        else:
            a, b = self.lora_A, self.lora_B
        added = F.linear(F.embedding(tokens, a.t()), b) * self.scale
        return (rows.float() + added).to(rows.dtype)

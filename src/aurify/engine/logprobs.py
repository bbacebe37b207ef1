"""Log-probs and entropies of tokens without ever holding all logits.

For 4,096 completion tokens and a vocabulary of 151,936 the logits alone take 2.3 GiB in fp32, and a naive loss holds
them several times. Here the head runs over chunks of positions. With a trained head, forward keeps one number for each
position (log Z) and backward computes the chunk's logits again; with a frozen head, forward keeps each position's
derivative. Upstream gradients are per token, so any surrogate loss can follow (fused cross-entropy kernels must know
the loss's weights in advance). Only positions that predict a trained token pass the head at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurify.engine.lora import LoraLinear

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # fp32 logits of one chunk; a GPU wants 1,000 rows or more
MOST_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap * tanh(scale * (hidden W^T + bias) / softcap); most models have neither scale nor softcap."""

    weight: Tensor  # [vocabulary, hidden]
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of(model: Any) -> Head | None:
        """The head of a causal language model from transformers; None if it is not a plain linear layer."""
        layer = model.get_output_embeddings()
        if isinstance(layer, LoraLinear):
            weight, bias = layer.head_weight(), layer.base.bias
        elif type(layer) is nn.Linear:
            weight, bias = layer.weight, layer.bias
        else:
            return None
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        return Head(weight, bias, scale, getattr(config, "final_logit_softcapping", None))

    @property
    def trained(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary] fp32"""
        hidden = hidden.to(self.weight.dtype)  # some models keep their residual stream in fp32
        if hidden.is_cuda and hidden.dtype != torch.float32:  # the products are summed in fp32: do not round them
            logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
            logits = logits if self.bias is None else logits.add_(self.bias)
        else:
            logits = F.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


class HeadGradient:
    """Adds up, chunk by chunk, the gradients of hidden states, weight and bias from those of the logits."""

    def __init__(self, head: Head, hidden: Tensor, temperature: float, needs: Sequence[bool]) -> None:
        """needs: which of the three have a gradient."""
        self.head, self.states, self.temperature = head, hidden, temperature
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        # fp32 accumulation over chunks, whatever the dtype of the weights
        self.weight = torch.zeros_like(head.weight, dtype=torch.float32) if needs[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=torch.float32) if needs[2] and head.bias is not None else None

    def add(self, rows: slice, grad: Tensor, logits: Tensor) -> None:
        """grad: by `logits / temperature`, where `logits` are those of the head for these rows. It is overwritten."""
        if self.head.softcap is not None:
            grad *= 1 - (logits / self.head.softcap) ** 2
        if self.head.scale != self.temperature:
            grad *= self.head.scale / self.temperature
        if self.bias is not None:
            self.bias += grad.sum(0)
        grad = grad.to(self.head.weight.dtype)
        if self.hidden is not None:
            torch.mm(grad, self.head.weight, out=self.hidden[rows])
        if self.weight is not None:
            if grad.dtype == torch.float32:
                self.weight.addmm_(grad.t(), self.states[rows])
            else:
                self.weight += grad.t() @ self.states[rows]

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """For hidden states, weight and bias, in the dtype of the head."""
        dtype = self.head.weight.dtype
        weight, bias = (None if grad is None else grad.to(dtype) for grad in (self.weight, self.bias))
        return self.hidden, weight, bias


class LinearLogProb(torch.autograd.Function):
    """hidden [n, hidden], targets [n] -> log-probs [n] and entropies [n], both fp32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, temperature: float,
        entropy: bool, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        num = len(targets)
        logprobs = hidden.new_empty(num, dtype=torch.float32)
        log_z, entropies = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        for rows in equal_slices(num, chunk):
            z = head.logits(hidden[rows]).div_(temperature)
            picked = z.gather(1, targets[rows, None]).squeeze(1)
            p, total, log_z[rows, None] = logit_exponentials(z, keep=entropy)
            logprobs[rows] = picked - log_z[rows]
            if entropy:
                entropies[rows] = log_z[rows] - p.mul_(z).sum(1) / total.squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropies)
        ctx.head, ctx.temperature, ctx.entropy, ctx.chunk = head, temperature, entropy, chunk
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> Any:
        hidden, _, _, targets, log_z, entropies = ctx.saved_tensors
        gradient = HeadGradient(ctx.head, hidden, ctx.temperature, ctx.needs_input_grad)
        for rows in equal_slices(len(targets), ctx.chunk):
            logits = ctx.head.logits(hidden[rows])
            log_p = scale_head_logits(logits, ctx.head, ctx.temperature).sub_(log_z[rows, None])
            upstream = grad_logprobs[rows, None], grad_entropy[rows, None] if ctx.entropy else None
            gradient.add(rows, logprob_gradient(log_p, targets[rows, None], entropies[rows, None], *upstream), logits)
        return *gradient.results(), None, None, None, None, None


def frozen_head_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float, entropy: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """`LinearLogProb` for a frozen head, such as that of a model with an adapter: each token's derivative by its hidden
    state is computed while its logits are there. Two products with the head instead of three."""
    frozen = hidden.detach()
    by_logprob = HeadGradient(head, frozen, temperature, (True, False, False))
    by_entropy = HeadGradient(head, frozen, temperature, (entropy, False, False))
    logprobs = frozen.new_empty(len(targets), dtype=torch.float32)
    entropies = torch.zeros_like(logprobs)
    for rows in equal_slices(len(targets), chunk):
        logits, target = head.logits(frozen[rows]), targets[rows, None]
        z = scale_head_logits(logits, head, temperature)
        picked = z.gather(1, target)
        p, total, log_z = logit_exponentials(z, keep=entropy)
        p /= total
        logprobs[rows] = (picked - log_z).squeeze(1)
        if entropy:
            log_p = z.sub_(log_z)
            entropies[rows] = -(p * log_p).sum(1)
            by_entropy.add(rows, log_p.add_(entropies[rows, None]).mul_(p).neg_(), logits)
        by_logprob.add(rows, p.neg_().scatter_add_(1, target, torch.ones_like(picked)), logits)
    logprobs = WithDerivative.apply(hidden, logprobs, by_logprob.hidden)
    return logprobs, WithDerivative.apply(hidden, entropies, by_entropy.hidden) if entropy else entropies


class WithDerivative(torch.autograd.Function):
    """values [n] whose derivative by hidden [n, hidden] is known: backward multiplies it by the upstream gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        [derivative] = ctx.saved_tensors
        return derivative * grad[:, None].to(derivative.dtype), None, None


def logit_exponentials(z: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z - max) [n, vocabulary], its sums and log Z [n, 1]. Overwrites z unless it is to be kept: with large logits,
    touching fresh memory is what costs time."""
    largest = z.amax(1, keepdim=True)
    p = (z - largest if keep else z.sub_(largest)).exp_()
    total = p.sum(1, keepdim=True)
    return p, total, largest + total.log()


def scale_head_logits(logits: Tensor, head: Head, temperature: float) -> Tensor:
    """logits / temperature; overwrites the logits unless the softcap's gradient needs them again."""
    return logits.div(temperature) if head.softcap is not None else logits.div_(temperature)


def logprob_gradient(
    log_p: Tensor, targets: Tensor, entropies: Tensor, grad_logprobs: Tensor, grad_entropy: Tensor | None
) -> Tensor:
    """d log p_target / dz = onehot - p  and  dH / dz = -p (log p + H), times their upstream gradients.

    log_p [n, vocabulary], overwritten; the others [n, 1]."""
    if grad_entropy is None:
        grad = log_p.exp_().mul_(-grad_logprobs)
    else:
        slope = (log_p + entropies).mul_(-grad_entropy).sub_(grad_logprobs)
        grad = log_p.exp_().mul_(slope)
    return grad.scatter_add_(1, targets, grad_logprobs)


def logit_chunk_rows(vocabulary: int, device_type: str, copies: int = 1) -> int:
    """Positions whose logits exist at the same time, `copies` times over."""
    size = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"])
    return max(16, min(MOST_ROWS, size // (4 * copies * vocabulary)))


def equal_slices(total: int, size: int) -> list[slice]:
    """Equal pieces of at most `size`: a short last piece would be slow."""
    num = -(-total // size)
    return [slice(total * k // num, total * (k + 1) // num) for k in range(num)]


def linear_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution (zeros unless asked for), at `temperature`.

    hidden [n, hidden], targets [n] int64 -> two [n] fp32. chunk: positions whose logits exist at the same time."""
    chunk = chunk or logit_chunk_rows(head.weight.shape[0], head.weight.device.type)
    if hidden.requires_grad and not head.trained:
        return frozen_head_logprobs(hidden, head, targets, temperature, entropy, chunk)
    return LinearLogProb.apply(hidden, head.weight, head.bias, targets, head, temperature, entropy, chunk)

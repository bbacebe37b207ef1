"""A decoding step in half the operations, for models that are built like Llama.

With one token for each sequence an operation has little work. What a model's own code calls around its products (norms
in six steps, rotations in seven each for queries and keys, modules everywhere) takes a fifth of a step, and cores that
decode side by side wait for each other, because only one of them runs Python at a time. So the step is written out
here, with the weights of the model itself. It is checked against the model before its first use (`step.py`).

In fp32, operations are joined if that saves one. In other precisions each result is rounded where the model's own code
rounds it: a step that rounds elsewhere would sample from another policy than the one that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurify.engine.lora import LoraLinear
from aurify.models.quantized_linear import QuantizedLinear
from aurify.samplers.cache import Decoding

ALIKE = ("llama", "mistral", "qwen2", "qwen3")


Product = Callable[[Tensor], Tensor]


def own_weight(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer that is one product; None if the layer must be called. They only change in place."""
    base = layer.base if isinstance(layer, LoraLinear) else layer
    if isinstance(base, QuantizedLinear):
        return None
    if type(base) is not nn.Linear:
        raise TypeError(f"{type(base).__name__} is no plain linear layer")
    if not isinstance(layer, LoraLinear):
        return base.weight, base.bias
    merged = layer.merged
    return None if merged is None or merged.dtype != torch.float32 else (merged, base.bias)


def multiply(layer: nn.Module) -> Product:
    own = own_weight(layer)
    return layer if own is None else lambda x: F.linear(x, *own)


def multiply_and_add(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """residual + layer(x)"""
    own, product = own_weight(layer), multiply(layer)
    if own is None or own[0].dtype != torch.float32:
        return lambda residual, x: residual + product(x)
    weight, bias = own
    return lambda residual, x: torch.addmm(residual if bias is None else residual + bias, x, weight.t())


class Norm:
    """Root mean square (arXiv 1910.07467)."""

    def __init__(self, layer: Any) -> None:
        self.weight, self.eps = layer.weight, layer.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


class Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.scale, self.head_dim = attention.layer_idx, attention.scaling, attention.head_dim
        # Mistral's layers have it in the config
        self.window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        self.before, self.after = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.query, self.key, self.value = map(multiply, (attention.q_proj, attention.k_proj, attention.v_proj))
        self.query_norm, self.key_norm = (
            Norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
        )
        self.gate, self.up = multiply(mlp.gate_proj), multiply(mlp.up_proj)
        self.add_output, self.add_down = multiply_and_add(attention.o_proj), multiply_and_add(mlp.down_proj)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, step: Decoding) -> Tensor:
        """x [n, hidden]; cos and sin [n, 1, head_dim]"""
        num, normed = len(x), self.before(x)
        query, key, value = (each(normed).view(num, -1, self.head_dim) for each in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (rotate(each, cos, sin)[:, :, None] for each in (query, key))
        mixed = step.attend(self.index, query, key, value[:, :, None], self.scale, self.window)
        x = self.add_output(x, mixed.view(num, -1))
        normed = self.after(x)
        return self.add_down(x, F.silu(self.gate(normed), inplace=True).mul_(self.up(normed)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864). The first half of `sin` is negated."""
    turned = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, turned, sin) if x.dtype == torch.float32 else (x * cos).add_(turned.mul_(sin))


class LlamaStep:
    def __init__(self, decoder: Any) -> None:
        self.embed, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.layers, self.norm = [Layer(layer) for layer in decoder.layers], Norm(decoder.norm)

    def __call__(self, tokens: Tensor, step: Decoding) -> Tensor:
        x = self.embed(tokens)
        cos, sin = self.rotary(x, position_ids=step.positions[:, None])
        first, second = sin.chunk(2, dim=-1)
        sin = torch.cat([-first, second], dim=-1)
        for layer in self.layers:
            x = layer(x, cos, sin, step)
        return self.norm(x)

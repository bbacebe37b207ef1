"""A decoding step in half the operations, for models that are built like Llama.

One token a sequence is little work an operation: what a model's own code calls around its products (norms in six
steps, rotations in seven for each of queries and keys, a module at every turn) takes a fifth of a step, and cores that
decode side by side wait for each other in it, because only one of them runs Python at a time. So the step is written
out here, with the weights of the model itself. It is checked against the model before its first use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraLinear
from aurify.samplers.cache import Decoding, SlotCache

log = logging.getLogger("aurify")

Step = Callable[[Tensor, Decoding], Tensor]  # last tokens [n] -> hidden states [n, hidden]; fills the cache
ALIKE = ("llama", "mistral", "qwen2", "qwen3")
TOLERANCE = 1e-3  # of hidden states, relative to the largest


class Linear:
    """The weights that a layer of the sampler multiplies by. They change in place only."""

    def __init__(self, layer: nn.Module) -> None:
        if isinstance(layer, LoraLinear):
            if layer.merged is None:
                raise TypeError("an adapter without merged weights")
            self.weight, self.bias = layer.merged, layer.base.bias
        elif type(layer) is nn.Linear:
            self.weight, self.bias = layer.weight, layer.bias
        else:
            raise TypeError(f"{type(layer).__name__} is no plain linear layer")

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(residual if self.bias is None else residual + self.bias, x, self.weight.t())


class Norm:
    """Root mean square (arXiv 1910.07467)."""

    def __init__(self, layer: Any) -> None:
        self.weight, self.eps = layer.weight, layer.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.scale, self.head_dim = attention.layer_idx, attention.scaling, attention.head_dim
        # Mistral's layers leave it in the config
        self.window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        self.before, self.after = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.query, self.key, self.value = (
            Linear(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        self.output = Linear(attention.o_proj)
        self.query_norm, self.key_norm = (
            Norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
        )
        self.gate, self.up, self.down = Linear(mlp.gate_proj), Linear(mlp.up_proj), Linear(mlp.down_proj)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, step: Decoding) -> Tensor:
        """x [n, hidden]; cos and sin [n, 1, head_dim]"""
        num, normed = len(x), self.before(x)
        query, key, value = (each(normed).view(num, -1, self.head_dim) for each in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (rotated(each, cos, sin)[:, :, None] for each in (query, key))
        mixed = step.attend(self.index, query, key, value[:, :, None], self.scale, self.window)
        x = self.output.added_to(x, mixed.view(num, -1))
        normed = self.after(x)
        return self.down.added_to(x, F.silu(self.gate(normed), inplace=True).mul_(self.up(normed)))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864). The first half of `sin` has its sign turned."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


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


class PlainStep:
    """By the model's own code."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def __call__(self, tokens: Tensor, step: Decoding) -> Tensor:
        result = self.decoder(
            input_ids=tokens[:, None], position_ids=step.positions[:, None], use_cache=False, layout=step
        )
        hidden: Tensor = result.last_hidden_state[:, 0]
        return hidden


def step_of(engine: Engine) -> Step:
    """Call it as the sampler samples: with merged weights, without gradients. Only fp32 on a CPU has the short step:
    elsewhere nobody has measured it, and in bf16 it would round otherwise than the trainer."""
    decoder, config = engine.body.decoder, engine.module.config.get_text_config()
    plain, embedding = PlainStep(decoder), engine.module.get_input_embeddings().weight
    here = embedding.device.type == "cpu" and embedding.dtype == torch.float32
    if not here or config.model_type not in ALIKE or config.hidden_act != "silu":
        return plain
    try:
        short = LlamaStep(decoder)
        gap = difference(short, plain, config.num_key_value_heads, embedding)
    except (AttributeError, TypeError, RuntimeError) as reason:
        log.warning("sampling by the model's own code, which is slower: %s", reason)
        return plain
    if not gap <= TOLERANCE:
        log.warning("sampling by the model's own code, which is slower: the short step differs by %.2g", gap)
        return plain
    return short


def difference(one: Step, other: Step, num_kv_heads: int, embedding: Tensor) -> float:
    """Between the hidden states of two sequences after two tokens, in empty caches."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, len(embedding), (2, 2), generator=generator)
    found = []
    for step in (one, other):
        cache = SlotCache(2, num_kv_heads, embedding.device, embedding.dtype)
        cache.reserve(5)
        found.append([step(row, Decoding(cache, [k, k + 3])) for k, row in enumerate(tokens)][-1])
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())

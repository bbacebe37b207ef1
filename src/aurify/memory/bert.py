"""BERT's encoder as search needs it on a CPU: one text at a time, without gradients.

A question has 5 to 20 tokens, so most of its time goes into reading the weights and into what surrounds the products.
Here weights are laid out for products of few rows once (oneDNN), q, k and v are one product, and GELU is part of
another: half the calls of the general model, and the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aurify.blocks import blocked_linear, blocks_of, blocks_pay

ROWS = 16  # what the blocks are laid out for; any number works


class Bert:
    """A transformers BertModel, whose embeddings and norms it uses; of its products it has weights of its own."""

    def __init__(self, model: Any) -> None:
        self.embeddings = model.embeddings
        self.layers = [layer_of(layer, model.config.num_attention_heads) for layer in model.encoder.layer]

    @staticmethod
    def of(model: Any) -> Bert | None:
        """None for another architecture, and where it would not pay."""
        if type(model).__name__ != "BertModel" or model.config.hidden_act != "gelu":
            return None
        return Bert(model) if blocks_pay(list(model.parameters())) else None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Hidden states [tokens, hidden] of one text, [tokens] int64."""
        x: Tensor = self.embeddings(input_ids=tokens[None])[0]
        for layer in self.layers:
            x = layer(x)
        return x


def layer_of(layer: Any, num_heads: int) -> Callable[[Tensor], Tensor]:
    attention = layer.attention.self
    mixed = product_of([attention.query, attention.key, attention.value])
    out, up, down = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
    project, widen, narrow = product_of([out]), product_of([up], "gelu"), product_of([down])
    norm, last_norm = layer.attention.output.LayerNorm, layer.output.LayerNorm

    def apply(x: Tensor) -> Tensor:
        query, key, value = mixed(x).view(1, len(x), 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        x = norm(project(seen[0].transpose(0, 1).reshape(len(x), -1)) + x)
        return last_norm(narrow(widen(x)) + x)

    return apply


def product_of(layers: list[nn.Linear], activation: str = "none") -> Callable[[Tensor], Tensor]:
    """Of the layers side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers])
    packed = blocks_of(weight, ROWS)
    return lambda x: blocked_linear(x, packed, bias, activation)

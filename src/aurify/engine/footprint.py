"""How many bytes a model takes, from its shape alone: weights, what training adds, activations, head, keys and values.

The engine chooses its micro-batch by these formulas (`budget.py`), the memory plan of a recipe adds them up
(`pipeline/memory.py`), and `docs/memory-plan.md` works them out for known models. Activations are what autograd saves
of a decoder layer of the Llama kind, term by term; other layers differ somewhat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from aurify.engine.logprobs import logit_chunk_rows

MASTER, MOMENTS, GRADIENT = 4, 8, 4  # bytes of a trained weight: its fp32 copy, AdamW's two moments, the gradient
MOMENTS_8BIT = 2
Activations = Literal["kept", "recomputed", "offloaded"]
QUANTISED_BITS = {"nf4": 4.127, "int8": 8.0}  # nf4: with a byte for 64 weights, and four for 256 of those bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder decides about memory."""

    layers: int
    hidden: int
    intermediate: int  # of all experts that a token passes
    heads: int
    queries: int  # numbers of a token's query, all heads together
    keys: int  # numbers of its key; its value has as many
    norms: int  # numbers that the norms of a layer take in
    vocabulary: int
    parameters: int  # a weight that two layers share counts once
    linear: int  # of them in linear layers of the decoder, which can be quantised

    @property
    def cached(self) -> int:
        """Numbers that the cache keeps of a token."""
        return 2 * self.layers * self.keys


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained of it. parameters: their number. whole: all weights. ranks: of the adapted layers that compute
    their thin products apart, added up (see lora.py); 0 where merged weights are kept."""

    parameters: int
    whole: bool
    ranks: int = 0
    adapter: int = 0  # parameters of the adapter
    merged: int = 0  # weights that adapted layers keep a merged copy of


def read_shape(module: Any) -> Shape:
    """module: a causal language model or a reward model; its weights may be missing (device "meta")."""
    config, embedding = module.config.get_text_config(), module.get_input_embeddings().weight
    hidden = int(config.hidden_size)
    heads = read_shape_number(config, "num_attention_heads", 1)
    size = read_shape_number(config, "head_dim", hidden // heads)
    queries, keys = heads * size, read_shape_number(config, "num_key_value_heads", heads) * size
    intermediate = read_shape_number(config, "intermediate_size", 4 * hidden)
    if experts := read_shape_number(config, "num_experts_per_tok", 0):
        intermediate = experts * read_shape_number(config, "moe_intermediate_size", intermediate)
    own = {id(p): p for name, p in module.named_parameters() if ".lora_" not in name}
    linears = {id(part): (part, part.in_features * part.out_features) for part in find_linear_layers(module)}
    packed = sum(num for part, num in linears.values() if "weight" not in part._parameters)  # quantised: no parameters
    layers = int(config.num_hidden_layers)
    return Shape(
        layers, hidden, intermediate, heads, queries, keys, count_norms(module, hidden, queries, keys),
        int(embedding.shape[0]), sum(p.numel() for p in own.values()) + packed,
        sum(num for _, num in linears.values()),
    )  # fmt: skip


def read_shape_number(config: Any, name: str, default: int) -> int:
    """Some models have a number for each layer: then the largest."""
    value = getattr(config, name, None)
    return int(max(value) if isinstance(value, list | tuple) else value or default)


def find_linear_layers(module: Any) -> Iterable[Any]:
    """The linear layers of the decoder, as they were before an adapter came."""
    return (
        part for name, part in module.base_model.named_modules() if isinstance(part, nn.Linear) and "lora_" not in name
    )


def count_norms(module: Any, hidden: int, queries: int, keys: int) -> int:
    """Numbers of a token that the norms of the first layer take in: some models also normalise queries and keys."""
    widths = {"q_norm": queries, "k_norm": keys}
    norms = [
        name.rpartition(".")[2]
        for name, part in module.base_model.named_modules()
        if "norm" in type(part).__name__.lower() and ".layers.0." in f".{name}"
    ]
    return sum(widths.get(name, hidden) for name in norms) or 2 * hidden


def read_training_memory(module: Any) -> Training:
    """Of the module of an engine, with the adapter that it has."""
    adapted = [part for part in module.modules() if hasattr(part, "lora_A")]
    thin = [part for part in adapted if getattr(part, "merged", None) is None]
    merged = [part.merged for part in adapted if getattr(part, "merged", None) is not None]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    own = [parameter for name, parameter in module.named_parameters() if ".lora_" in name]
    return Training(
        sum(p.numel() for p in trained),
        whole=not adapted,
        ranks=sum(part.lora_A.shape[0] for part in thin),
        adapter=sum(p.numel() for p in own),
        merged=sum(weight.numel() for weight in merged),
    )


# ---------------------------------------------------------------------- weights and what training adds


def weight_bytes(shape: Shape, width: int, quantize: str | None = None) -> int:
    """width: bytes of a weight that is not quantised."""
    bits = QUANTISED_BITS[quantize] if quantize else 8 * width
    return round((shape.parameters - shape.linear) * width + shape.linear * bits / 8)


def dequantised_bytes(shape: Shape, width: int, quantize: str | None) -> int:
    """The largest linear layer in the dtype of the model: one at a time is dequantised for its product."""
    return width * shape.hidden * max(shape.intermediate, shape.queries) if quantize else 0


def adapter_bytes(training: Training, width: int) -> int:
    """fp32 adapters, with their copies in the dtype of the model, or the merged weights that are kept instead."""
    rounded = width * training.adapter if width < 4 and training.ranks else 0
    return 4 * training.adapter + rounded + width * training.merged


def optimizer_bytes(training: Training, width: int, kind: str = "adamw") -> int:
    """Moments, and masters of weights that are not fp32 themselves. Adapters are. kind: as `optim.kind`."""
    masters = MASTER * (training.parameters - training.adapter) if width < 4 else 0
    return (MOMENTS_8BIT if kind.endswith("8bit") else MOMENTS) * training.parameters + masters


def gradient_bytes(training: Training) -> int:
    return GRADIENT * training.parameters


# ---------------------------------------------------------------------- activations


def layer_activation_bytes(shape: Shape, width: int, training: Training, keys: float = 1.0) -> int:
    """What autograd saves of a token in a decoder layer.

        4 intermediate     gate, its activation, up, their product (the input of down)
        3 hidden           inputs of the projections to queries, keys and values, of that back, and of gate and up
        2 queries          queries and attention's output, with 4 bytes a head for its sums
        2 keys             keys and values; a CPU gathers those of a block of queries, `keys` times as many
        norms, in fp32     what the norms take in; once more in the model's dtype if their weights are trained
        ranks              of adapted layers: the thin product

    Everything is in the dtype of the model but the third last and the sums."""
    numbers = 4 * shape.intermediate + 3 * shape.hidden + 2 * shape.queries + 2 * keys * shape.keys
    numbers += shape.norms if training.whole else 0
    return round(width * numbers + 4 * shape.norms + 4 * shape.heads + width * training.ranks / shape.layers)


def token_activation_bytes(
    shape: Shape, width: int, training: Training, activations: Activations, keys: float = 1.0
) -> int:
    """What autograd saves of a token in the whole decoder. recomputed: the input of each layer, and one layer;
    offloaded: two inputs are on the device at a time."""
    layer, inputs = layer_activation_bytes(shape, width, training, keys), width * shape.hidden
    last = (4 + width + (width if training.whole else 0)) * shape.hidden  # the last norm, and what the head takes in
    if activations == "kept":
        return last + shape.layers * layer
    return last + layer + inputs * (2 if activations == "offloaded" else shape.layers)


def backward_bytes(shape: Shape, width: int) -> int:
    """Gradients by the activations of a token that exist at the same time: three as wide as the MLP, and those of the
    residual stream."""
    return width * (3 * shape.intermediate + shape.hidden) + 4 * shape.hidden


def forward_bytes(shape: Shape, width: int) -> int:
    """Without gradients: what exists of a token at the same time."""
    return width * (3 * shape.intermediate + 2 * shape.hidden)


# ---------------------------------------------------------------------- head, keys and values


def head_activation_bytes(
    shape: Shape, width: int, device_type: str, positions: int, *, trained: bool, entropy: bool = False
) -> int:
    """The logits of a chunk in fp32 (once more for the entropy), and in the model's dtype. A trained head has a
    gradient that adds up in fp32."""
    chunk = (
        count_chunk_positions(shape, device_type, positions)
        * shape.vocabulary
        * (4 * (2 if entropy else 1) + (width if width < 4 else 0))
    )
    weight = shape.vocabulary * shape.hidden * (4 + (2 * width if width < 4 else 0)) if trained else 0
    return chunk + weight


def count_chunk_positions(shape: Shape, device_type: str, positions: int) -> int:
    return min(positions, logit_chunk_rows(shape.vocabulary, device_type))


def kv_cache_bytes(shape: Shape, width: int, slots: int, length: int) -> int:
    return slots * length * shape.cached * width

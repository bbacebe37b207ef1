"""Models, data and measures that gpu_check.py and tests/gpu share. Needs torch, transformers and Aurify; no file and no
network: weights are drawn on the device.

VARIANTS are small models for correctness. Their weights are drawn so that every part matters: logits deviate by about
2, attention is neither even nor one-hot, and norms and biases differ from 1 and 0. SHAPES are those of real models, for
speed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from aurify.models.model import LoadedModel
from aurify.models.tiny import byte_tokenizer
from aurify.types import Datum

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VOCABULARY = 512  # of a variant


@dataclass(frozen=True)
class Variant:
    """A small model. The name says how many query heads share a key head, the head size, and the window."""

    name: str
    architecture: str
    heads: int
    kv_heads: int
    head_dim: int
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    each.name: each
    for each in (
        Variant("llama-gqa4-64", "Llama", 8, 2, 64),
        Variant("mistral-gqa4-128-window24", "Mistral", 8, 2, 128, {"sliding_window": 24}),
        Variant("qwen2-gqa7-64", "Qwen2", 14, 2, 64),
        Variant("qwen3-gqa4-128", "Qwen3", 8, 2, 128),
        Variant("llama-gqa1-64", "Llama", 4, 4, 64),
        Variant("mistral-gqa7-64-window200", "Mistral", 7, 1, 64, {"sliding_window": 200}),
    )
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-0.6b": (
        "Qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.2-1b": (
        "Llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-7b": (
        "Qwen2",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
}
# what stands for all of them where the speed parts are tried on a CPU
SMALL_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    held = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(held)


def make_module(architecture: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Weights as transformers draws them, on the device: on the CPU a 7B would take minutes."""
    config = getattr(transformers, f"{architecture}Config")(**options)
    with torch.device(device), default_dtype(dtype):
        module = getattr(transformers, f"{architecture}ForCausalLM")(config)
    return module.eval()


def make_shape(name: str, card: Card) -> LoadedModel:
    """A real model's shape in bf16; on a CPU a small one of the same architecture."""
    architecture, options = SHAPES[name]
    if not card.cuda:
        options = {**options, **SMALL_SHAPE, **({"head_dim": 16} if "head_dim" in options else {})}
    module = make_module(architecture, {"max_position_embeddings": 8192, **options}, torch.bfloat16, card.device)
    return LoadedModel(module, byte_tokenizer(), name)


@torch.no_grad()
def make_variant(
    name: str, dtype: torch.dtype, device: torch.device, *, vocabulary: int = VOCABULARY, seed: int = 0
) -> LoadedModel:
    """The same weights on every device, up to their rounding to `dtype`."""
    variant = VARIANTS[name]
    options = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": variant.heads,
        "num_key_value_heads": variant.kv_heads,
        "head_dim": variant.head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    module = make_module(variant.architecture, options | variant.options, dtype, device)
    generator = torch.Generator().manual_seed(seed)
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter is head:
            drawn *= 2 / parameter.shape[1] ** 0.5
        elif parameter.ndim == 1:
            drawn = parameter.float().cpu() + 0.1 * drawn  # norms are 1, biases 0
        elif parameter is not embedding:
            drawn /= parameter.shape[1] ** 0.5
        parameter.copy_(drawn)
    return LoadedModel(module, byte_tokenizer(), name)


def make_tree(num_nodes: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """A prompt with two branches, one of which forks again, and an unrelated text: `num_nodes` distinct nodes."""
    draw = np.random.default_rng(seed).integers
    sizes = [max(1, num_nodes * share // 20) for share in (4, 7, 2, 3, 1)]  # prompt, long, fork, one, other
    prompt, long, fork, one, other, alone = (
        list(map(int, draw(0, vocabulary, size))) for size in (*sizes, num_nodes - sum(sizes))
    )
    for siblings in ((prompt, alone), (long, fork), (one, other)):  # chance must not make them begin alike
        siblings[1][0] = (siblings[0][0] + 1) % vocabulary
    return [prompt + long, prompt + fork + one, prompt + fork + other, alone]


def make_data(sequences: list[list[int]], seed: int = 0) -> list[Datum]:
    """Every token is trained, each with a weight of its own."""
    draw = np.random.default_rng(seed).uniform
    return [Datum(tokens, [0.0, *draw(0.1, 1.0, len(tokens) - 1).tolist()]) for tokens in sequences]


def make_rows(kind: str, vocabulary: int, card: Card) -> list[Datum]:
    """Rows of SFT, loss on the answers. "short": 32 as long as those of GSM8K; "long": 12 of 512 to 2,048 tokens."""
    generator = np.random.default_rng(0)
    prompts = generator.integers(60, 160, 32) if kind == "short" else generator.integers(256, 1024, 12)
    answers = generator.integers(40, 240, 32) if kind == "short" else generator.integers(256, 1024, 12)
    shrink = 1 if card.cuda else 16
    return [
        Datum(
            list(map(int, generator.integers(0, vocabulary, prompt + answer))),
            [0.0] * int(prompt) + [1.0] * int(answer),
        )
        for prompt, answer in zip(prompts // shrink, answers // shrink, strict=True)
    ]


@dataclass(frozen=True)
class Work:
    """What a step computes at least: no padding, the head on trained tokens alone, nothing recomputed.

    Products of a weight with a token cost 2 FLOPs a weight in forward, 2 for the token's gradient and 2 for the
    weight's; a frozen weight has no gradient. Attention costs 4 x heads x head size for each token that a token sees,
    and twice that in backward.

        full   6 N T + 6 H A + 12 P            N weights of the layers, H of the head, L of the adapters,
        LoRA   4 N T + 4 H A + 6 L T + 12 P    T tokens, A trained tokens, P = layers x heads x head size x pairs"""

    layer_weights: int
    head_weights: int
    attention: int  # layers x heads x head size

    @staticmethod
    def of(module: Any) -> Work:
        config = module.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        linears = [layer.weight for layer in module.base_model.modules() if isinstance(layer, nn.Linear)]
        attention = config.num_hidden_layers * config.num_attention_heads * head_dim
        head = module.get_output_embeddings().weight.numel()
        return Work(sum(weight.numel() for weight in linears), head, attention)

    def step_flops(self, data: list[Datum], adapter_weights: int | None) -> float:
        """adapter_weights: None when all weights are trained."""
        lengths = [len(datum.tokens) for datum in data]
        tokens, trained = sum(lengths), sum(sum(weight != 0 for weight in datum.weights) for datum in data)
        pairs = self.attention * sum(length * (length + 1) // 2 for length in lengths)
        factor, adapters = (6, 0) if adapter_weights is None else (4, adapter_weights)
        products = factor * (self.layer_weights * tokens + self.head_weights * trained) + 6 * adapters * tokens
        return float(products + 12 * pairs)

    def decoding_bytes(self, width: int = 2) -> int:
        """Weights that a decoding step has to read."""
        return width * (self.layer_weights + self.head_weights)


class Card:
    """The device, and what is asked of it. On a CPU memory counts as 0."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        if self.cuda and torch.cuda.is_available():
            # more kinds of models than any run has; without this FlexAttention would refuse the last of them
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else 0

    def reset_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def free(self) -> None:
        """Gives back what nobody holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def forget_compiled(self) -> None:
        """As in a new process: what was compiled for other models is no longer looked through at every call."""
        if self.cuda:
            torch._dynamo.reset()

    def usable(self) -> int:
        """Bytes that can still be allocated."""
        return torch.cuda.mem_get_info()[0] if self.cuda else 1 << 40

    def seconds(self, function: Callable[[], Any]) -> float:
        self.synchronise()
        begin = time.perf_counter()
        function()
        self.synchronise()
        return time.perf_counter() - begin


def summarise(values: Tensor) -> dict[str, float]:
    """Mean and quantiles of |values|."""
    flat = values.detach().abs().double().flatten()
    stride = max(1, flat.numel() // 200_000)
    p50, p90, p99 = np.quantile(flat[::stride].cpu().numpy(), [0.5, 0.9, 0.99]).tolist()
    return {"mean": float(flat.mean()), "p50": p50, "p90": p90, "p99": p99}


def compare_distributions(expected: Tensor, found: Tensor) -> dict[str, float]:
    """Log-probs [positions, vocabulary] twice -> statistics of |difference| and of KL(expected, found)."""
    expected, found = expected.double(), found.double()
    change = found - expected
    # KL = sum p (q / p - 1 - log q / p): no term is negative, so nothing is lost in the sum
    divergence = (expected.exp() * (change.expm1() - change)).sum(-1)
    kl = summarise(divergence)
    return {**summarise(change), "kl": kl["mean"], "kl_p99": kl["p99"]}


def compare_gradients(expected: list[Tensor | None], found: list[Tensor | None]) -> dict[str, float]:
    """The relative error of each parameter's gradient: median and largest. A parameter that only one side reaches
    counts as 1."""
    errors = []
    for one, two in zip(expected, found, strict=True):
        if one is None and two is None:
            continue
        if one is None or two is None:
            errors.append(1.0)
            continue
        first, second = one.double(), two.double()
        errors.append(float((second - first).norm() / first.norm().clamp_min(1e-30)))
    return {"gradient": float(np.median(errors)), "gradient_max": max(errors)}

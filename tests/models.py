"""Random two-layer models of several architectures, made in code: tests need no download."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import torch
import transformers

from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.models.model import LoadedModel, tiny_model

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}

# Weights as transformers draws them make attention nearly uniform: with these it matters who sees whom.
ATTENTIVE = {"initializer_range": 0.15}


def random_model(
    architecture: str = "Llama", *, scalar_head: bool = False, seed: int = 0, **options: object
) -> LoadedModel:
    """A randomly initialised model with the byte-level tokenizer of random:tiny."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**SIZES, "pad_token_id": 0, **options})
    suffix = "ForSequenceClassification" if scalar_head else "ForCausalLM"
    if scalar_head:
        config.num_labels = 1
    module = getattr(transformers, architecture.removesuffix("Text") + suffix)(config).float().eval()
    return LoadedModel(module=module, tokenizer=tiny_model().tokenizer, name="random:tiny", adapter=None)


def random_engine(
    architecture: str = "Llama", lora: LoraConfig | None = None, dtype: torch.dtype = torch.float32, **options: object
) -> Engine:
    """An engine on such a model. An adapter has values that change what the model says."""
    model = random_model(architecture, **options)
    model.module.to(dtype)
    engine = Engine(model, lora=lora)
    if engine.adapter is not None:
        for k, layer in enumerate(engine.adapter.layers.values()):
            torch.nn.init.normal_(layer.lora_B, std=0.05, generator=torch.Generator().manual_seed(k))
        engine.adapter.merge()
    return engine


def run_sampler(sampler: Any, body: Callable[[], Awaitable[Any]]) -> Any:
    """What `body` gives, with a sampler that is closed afterwards."""

    async def main() -> Any:
        try:
            return await body()
        finally:
            await sampler.close()

    return asyncio.run(main())

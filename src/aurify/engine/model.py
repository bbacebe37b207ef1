"""Loads and saves models. A name is a hub id, a local folder, a GGUF file, a short name of the catalogue, an adapter folder, or
"random:tiny": a two-layer model with a byte-level tokenizer, made in code, for tests and for trying a recipe in seconds."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from aurify.engine import catalog
from aurify.errors import UserError

log = logging.getLogger("aurify")

RANDOM_TINY = "random:tiny"
HUB_TIMEOUT = 5.0  # seconds for the first answer of the hub


@dataclass(frozen=True)
class ModelConfig:
    name: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass
class LoadedModel:
    module: Any  # *ForCausalLM, or *ForSequenceClassification with one label
    tokenizer: Any
    name: str  # what an adapter names as its base
    adapter: Path | None = None  # folder of the adapter to go on with


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model's files are."""

    base: str  # a folder, a hub id, or random:tiny
    gguf: Path | None = None
    adapter: Path | None = None


def load_model(config: ModelConfig | str, *, scalar_head: bool = False, seed: int = 0) -> LoadedModel:
    """scalar_head: a reward model, whose new head (if the folder has none) is drawn from `seed`."""
    config = ModelConfig(config) if isinstance(config, str) else config
    device, place = device_of(config.device), resolve(config.name)
    dtype = dtype_of(config.dtype, device)
    if place.base == RANDOM_TINY:
        loaded = tiny_model(scalar_head=scalar_head, seed=seed)
        module, tokenizer = loaded.module.to(dtype), loaded.tokenizer
    elif place.gguf is not None:
        if scalar_head:
            raise UserError(f"{place.gguf}: a reward model starts from a folder or hub id, not from a GGUF file; export one first")
        module, tokenizer = load_gguf(place.gguf, dtype)
    else:
        module = load_folder(place.base, dtype, scalar_head, seed)
        tokenizer = load_tokenizer(config.name)
    if scalar_head:
        module.score.float()
        module.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(module.to(device).eval(), tokenizer, place.base, place.adapter)


def load_folder(base: str, dtype: torch.dtype, scalar_head: bool, seed: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with quiet(), complain(base):
        if not scalar_head:
            return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        module, info = AutoModelForSequenceClassification.from_pretrained(
            base, dtype=dtype, num_labels=1, output_loading_info=True
        )
    if any("score" in key for key in info["missing_keys"]):
        if not isinstance(getattr(module, "score", None), nn.Linear):
            raise UserError(f"{base}: {type(module).__name__} has no linear 'score' head; it cannot become a reward model")
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(module.score.weight.shape, generator=generator) / module.config.hidden_size**0.5
        module.score.weight.data.copy_(0.1 * weight)  # scores start near zero
    return module


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Dequantised. transformers cannot save a model that it read from GGUF, so the weights move into a plain one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), complain(str(path)):
        loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    module = type(loaded)(config)
    module.load_state_dict(loaded.state_dict())
    module.tie_weights()
    module.generation_config = loaded.generation_config
    return module.to(dtype).eval(), with_padding(tokenizer, str(path))


def load_tokenizer(name: str) -> Any:
    place = resolve(name)
    if place.base == RANDOM_TINY:
        return byte_tokenizer()
    if place.gguf is not None:
        return load_gguf(place.gguf, torch.float32)[1]
    from transformers import AutoTokenizer

    source = place.adapter if place.adapter and (place.adapter / "tokenizer_config.json").exists() else place.base
    with quiet(), complain(str(source)):
        return with_padding(AutoTokenizer.from_pretrained(str(source)), str(source))


def with_padding(tokenizer: Any, name: str) -> Any:
    """Padding never reaches a loss (masks come from lengths), so any id will do: the end token, where there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer names no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def resolve(name: str) -> Place:
    """Finds a model's files; an adapter folder leads to its base."""
    if name == RANDOM_TINY:
        return Place(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name!r}: there is no such GGUF file{near(path)}")
        return Place(str(path), gguf=path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            base = resolve(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"])
            return Place(base.base, base.gguf, adapter=path)
        if not (path / "config.json").exists():
            files = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise UserError(f"model {name!r}: the folder has no config.json (it holds {files}); give the folder of a saved model")
        return Place(str(path))
    known = catalog.find(name)
    if known is not None and (name == known.name or catalog.is_cached(known)):
        return Place(str(catalog.fetch(known)))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise unknown(name)
    return hub(name, known)


def hub(name: str, known: catalog.KnownModel | None) -> Place:
    """A hub id, if the hub (or its local cache) answers; else the catalogue's way to the same model."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with quiet():
            hf_hub_download(name, "config.json", etag_timeout=HUB_TIMEOUT)
        return Place(name)
    except GatedRepoError:
        raise UserError(f"model {name!r}: the hub wants you to accept its terms; do so, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise unknown(name) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        if known is not None:
            log.info("%s: the model hub does not answer", name)
            return Place(str(catalog.fetch(known)))
        raise UserError(
            f"model {name!r}: it is not in the local cache and the model hub does not answer. Download it where there is a "
            f"network and give its folder, or use one of: {', '.join(catalog.KNOWN)}"
        ) from None


def unknown(name: str) -> UserError:
    names = {*catalog.KNOWN, *(known.hub_id for known in catalog.KNOWN.values()), RANDOM_TINY}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else near(Path(name).expanduser())
    return UserError(f"model {name!r} is neither a folder, a GGUF file, a catalogue name nor a hub id (owner/name){hint}")


def near(path: Path) -> str:
    """'; did you mean ...' among the neighbours of a path that is not there."""
    neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.5)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def save_model(module: Any, tokenizer: Any, folder: Path) -> None:
    """A plain folder, complete or not there at all."""
    folder = Path(folder)
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet():
        module.save_pretrained(scratch)
    if getattr(module, "generation_config", None) is not None:
        module.generation_config.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text())
    if config.pop("_attn_implementation", None) or config.pop("attn_implementation", None):
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)


def device_of(wish: str) -> torch.device:
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: 'cuda' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if wish in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def dtype_of(wish: str, device: torch.device) -> torch.dtype:
    if wish != "auto":
        return torch.float32 if wish == "float32" else torch.bfloat16
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def cpu_has_bf16() -> bool:
    """Whether matrix products in bf16 run in hardware. Emulated ones are hundreds of times slower than fp32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def byte_tokenizer() -> Any:
    """256 bytes and three special tokens, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", additional_special_tokens=special[:2]
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def tiny_model(*, scalar_head: bool = False, seed: int = 0, **sizes: int) -> LoadedModel:
    """A random two-layer Llama, the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = byte_tokenizer()
    options: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(**(options | sizes), num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = (LlamaForSequenceClassification if scalar_head else LlamaForCausalLM)(config)
    return LoadedModel(module.float().eval(), tokenizer, RANDOM_TINY)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' bars and advice stay off our console; its errors do not."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def complain(name: str) -> Iterator[None]:
    """What transformers raises for missing or broken files, as one paragraph that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"model {name!r} cannot be loaded: {reason}. Check that the folder is complete, or fetch it again") from error

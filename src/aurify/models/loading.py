"""Reads and writes the files of a model with transformers. What it only warns of (weights that are missing or do not
fit) is an error here, and its errors name the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from aurify.errors import UserError
from aurify.files import replace_folder
from aurify.models.tiny import byte_tokenizer

RANDOM_TINY = "random:tiny"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the files of a model are."""

    base: str  # a folder, a hub id, or random:tiny: what an adapter names as its base
    gguf: Path | None = None
    adapter: Path | None = None
    folder: Path | None = None  # of a hub id on this machine: in the hub's cache, or made by the catalogue
    origin: str = ""  # the catalogue's name of a model that it made

    @property
    def source(self) -> str:
        """What transformers is to load."""
        return str(self.folder or self.base)


def load_model_folder(files: ModelFiles, dtype: torch.dtype, scalar_head: bool, seed: int, **options: Any) -> Any:
    """Loads a folder or hub id. scalar_head: as a reward model, whose head is new if the files have none. options: of
    transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scalar_head else AutoModelForCausalLM
    options |= {"num_labels": 1} if scalar_head else {}
    with quiet_transformers(), explain_load_error(files.base):
        module, info = kind.from_pretrained(
            files.source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    headless = scalar_head and any(key.startswith("score.") for key in info["missing_keys"])
    absent = sorted(key for key in info["missing_keys"] if not (headless and key.startswith("score.")))
    if absent:
        raise UserError(
            f"model {files.base!r}: {len(absent)} weights of {type(module).__name__} are not in its files, such as "
            f"{absent[0]!r}. The folder is incomplete, or holds another kind of model (a reward model is no language "
            "model); fetch or export it again"
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise UserError(
            f"model {files.base!r}: weight {name!r} has shape {list(found)}, config.json asks for {list(expected)}; "
            "its files do not belong together"
        )
    if headless:
        init_scalar_head(module, seed)
    return module


def build_empty_model(files: ModelFiles, scalar_head: bool) -> Any:
    """The module with its layers and no weights (PyTorch's device "meta")."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    with quiet_transformers(), explain_load_error(files.base):
        if files.gguf is None:
            config = AutoConfig.from_pretrained(files.source)
        else:
            config = AutoConfig.from_pretrained(str(files.gguf.parent), gguf_file=files.gguf.name)
        with torch.device("meta"):
            if not scalar_head:
                return AutoModelForCausalLM.from_config(config)
            config.num_labels = 1
            return AutoModelForSequenceClassification.from_config(config)


def load_gguf(path: Path, dtype: torch.dtype) -> Any:
    """Dequantises a GGUF file. transformers cannot save a model that it read from GGUF, so the weights move into a
    plain one."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), quiet_dequantising(), explain_load_error(str(path)):
        loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    module = type(loaded)(config)
    module.load_state_dict(loaded.state_dict())
    module.tie_weights()
    module.generation_config = loaded.generation_config
    return cast_weights(module, dtype).eval()


def add_scalar_head(causal: Any, seed: int) -> Any:
    """Builds a reward model on the body of a language model."""
    from transformers import AutoModelForSequenceClassification

    values = {k: v for k, v in causal.config.to_dict().items() if k not in ("id2label", "label2id")}
    config = type(causal.config).from_dict(values | {"num_labels": 1})
    with explain_load_error(type(causal).__name__):
        module = AutoModelForSequenceClassification.from_config(config)
        module.base_model.load_state_dict(causal.base_model.state_dict())
    init_scalar_head(module, seed)
    return cast_weights(module, next(causal.parameters()).dtype)


def init_scalar_head(module: Any, seed: int) -> None:
    """Draws a new head from `seed`, small, so that scores start near zero."""
    if not isinstance(getattr(module, "score", None), nn.Linear):
        raise UserError(f"{type(module).__name__} has no linear 'score' head; it cannot become a reward model")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(module.score.weight.shape, generator=generator) / module.score.in_features**0.5
    module.score.weight.data.copy_(0.1 * weight)


def cast_weights(module: Any, dtype: torch.dtype) -> Any:
    """Casts the weights alone. Module.to would also round the rotary frequencies, which transformers keeps in fp32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def read_model_dtype(files: ModelFiles) -> torch.dtype:
    """Of the weights in a model's files."""
    if files.base == RANDOM_TINY:
        return torch.float32
    if files.gguf is not None:
        return torch.bfloat16
    from transformers import AutoConfig

    with explain_load_error(files.base):
        return AutoConfig.from_pretrained(files.source).dtype or torch.float32


def read_tokenizer(files: ModelFiles) -> Any:
    """Reads the adapter's own tokenizer if its folder has one, else the base's."""
    if files.base == RANDOM_TINY:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    own = files.adapter is not None and (files.adapter / "tokenizer_config.json").exists()
    source = str(files.adapter if own else files.source)
    with quiet_transformers(), explain_load_error(source):
        if files.gguf is not None and not own:
            tokenizer = AutoTokenizer.from_pretrained(str(files.gguf.parent), gguf_file=files.gguf.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: the tokenizer names no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:  # padding never reaches a loss, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_adapter_header(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shapes of an adapter's tensors, and what was written beside them."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        return {}, {}
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            return {name: opened.get_slice(name).get_shape() for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file} is damaged, or only a pointer of Git LFS ({error}); copy it again") from error


def choose_other_padding(tokenizer: Any) -> Any:
    """For reward models. Plain transformers takes the score of the last token that is not padding. If the end token
    pads, it would miss the end token of a text, on which we train the score."""
    taken = (tokenizer.eos_token, tokenizer.bos_token)
    others = [token for token in tokenizer.all_special_tokens if token not in taken]
    if tokenizer.pad_token_id == tokenizer.eos_token_id and others:
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token in others else others[0]
    return tokenizer


def save_model(module: Any, tokenizer: Any, folder: Path, max_shard_size: str = "50GB") -> None:
    """Writes a plain folder that transformers loads, complete or not there at all."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    generation = getattr(module, "generation_config", None)
    if generation is not None and generation.do_sample is not True:
        try:
            generation.validate(strict=True)
        except ValueError:  # models on the hub name a temperature without do_sample; transformers will not save that
            generation.do_sample = True
    with quiet_transformers():
        module.save_pretrained(scratch, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text())
    if config.pop("_attn_implementation", None) or config.pop("attn_implementation", None):
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    replace_folder(scratch, folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' bars and advice off our console; its errors still come."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_dequantising() -> Iterator[None]:
    """Keeps the bar off our console that transformers draws for GGUF files without asking its own switch."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    bar = gguf.tqdm
    gguf.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        gguf.tqdm = bar


@contextmanager
def explain_load_error(name: str) -> Iterator[None]:
    """Turns what transformers raises for missing or broken files into one paragraph that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"model {name!r} cannot be loaded: {reason}. Check that the folder is complete, or fetch it again"
        ) from error

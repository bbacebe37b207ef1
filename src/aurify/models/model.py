"""Loads and saves models. A name is a hub id, a local folder, a GGUF file, a short name of the catalogue, an adapter
folder, or "random:tiny": a two-layer model with a byte-level tokenizer, made in code, for tests and for trying a recipe
in seconds."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from aurify.errors import UserError
from aurify.files import replace_folder
from aurify.hardware import choose_device, choose_dtype
from aurify.models import catalog
from aurify.models.tiny import byte_tokenizer, random_llama

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
    dtype_reason: str = "as given"  # why the weights have their dtype


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are."""

    base: str  # a folder, a hub id, or random:tiny
    gguf: Path | None = None
    adapter: Path | None = None
    snapshot: Path | None = None  # of a hub id in the hub's local cache, where the hub does not answer

    @property
    def source(self) -> str:
        """What transformers is to load."""
        return str(self.snapshot or self.base)


def load_model(config: ModelConfig | str, *, scalar_head: bool = False, seed: int = 0) -> LoadedModel:
    """scalar_head: a reward model, whose new head (if the folder has none) is drawn from `seed`."""
    config = ModelConfig(config) if isinstance(config, str) else config
    device, files = choose_device(config.device), resolve_model(config.name)
    choice = choose_dtype(config.dtype, device)
    dtype = choice.dtype
    if files.base == RANDOM_TINY:
        loaded = tiny_model(scalar_head=scalar_head, seed=seed)
        module, tokenizer = cast_weights(loaded.module, dtype), loaded.tokenizer
    else:
        tokenizer = read_tokenizer(files)
        if files.gguf is None:
            module = load_folder(files, dtype, scalar_head, seed)
        else:
            module = load_gguf(files.gguf, dtype)
            module = with_scalar_head(module, seed) if scalar_head else module
    check_vocabulary(tokenizer, module.get_input_embeddings().weight.shape[0], config.name)
    if scalar_head:
        module.config.pad_token_id = with_own_padding(tokenizer).pad_token_id
    # transformers gives the padding token's embedding no gradient; where that is the end token, it has to be trained.
    module.get_input_embeddings().padding_idx = None
    return LoadedModel(module.to(device).eval(), tokenizer, files.base, files.adapter, choice.reason)


def check_vocabulary(tokenizer: Any, num_rows: int, name: str) -> None:
    """Every token that can come about must have an embedding. Added tokens beyond the embedding are no harm where
    nothing writes them: padding, or an image's place, in models whose tokenizer knows more than they do."""
    beyond = {text: token for text, token in tokenizer.get_vocab().items() if token >= num_rows}
    if not beyond:
        return
    added = {str(entry) for entry in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    written = {tokenizer.eos_token, tokenizer.bos_token} | {t for t in added if t in str(tokenizer.chat_template or "")}
    needed = sorted((token, text) for text, token in beyond.items() if text not in added or text in written)
    if needed:
        token, text = needed[0]
        raise UserError(
            f"model {name!r}: its tokenizer has {len(needed)} tokens without an embedding, such as {text!r} ({token}); "
            f"the model has {num_rows} rows. The tokenizer belongs to another model, or tokens were added without "
            "model.resize_token_embeddings(len(tokenizer)); mend the folder"
        )
    log.warning(
        "%s: added tokens without an embedding: %s; the chat template writes none of them, and a prompt that has one "
        "is refused",
        name,
        ", ".join(sorted(beyond)[:5]),
    )


def load_folder(files: ModelFiles, dtype: torch.dtype, scalar_head: bool, seed: int) -> Any:
    """A folder or hub id. transformers only warns of weights that it does not find, and draws them at random: here that
    is an error."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scalar_head else AutoModelForCausalLM
    options: dict[str, Any] = {"num_labels": 1} if scalar_head else {}
    with quiet_transformers(), explain_failure(files.base):
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
        init_score(module, seed)
    return module


def with_scalar_head(causal: Any, seed: int) -> Any:
    """The reward model on a language model's body."""
    from transformers import AutoModelForSequenceClassification

    values = {k: v for k, v in causal.config.to_dict().items() if k not in ("id2label", "label2id")}
    config = type(causal.config).from_dict(values | {"num_labels": 1})
    with explain_failure(type(causal).__name__):
        module = AutoModelForSequenceClassification.from_config(config)
        module.base_model.load_state_dict(causal.base_model.state_dict())
    init_score(module, seed)
    return cast_weights(module, next(causal.parameters()).dtype)


def init_score(module: Any, seed: int) -> None:
    """A new head: small, so that scores start near zero, and the same for the same seed."""
    if not isinstance(getattr(module, "score", None), nn.Linear):
        raise UserError(f"{type(module).__name__} has no linear 'score' head; it cannot become a reward model")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(module.score.weight.shape, generator=generator) / module.score.in_features**0.5
    module.score.weight.data.copy_(0.1 * weight)


def load_gguf(path: Path, dtype: torch.dtype) -> Any:
    """Dequantised. transformers cannot save a model that it read from GGUF, so the weights move into a plain one."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), explain_failure(str(path)):
        loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    module = type(loaded)(config)
    module.load_state_dict(loaded.state_dict())
    module.tie_weights()
    module.generation_config = loaded.generation_config
    return cast_weights(module, dtype).eval()


def cast_weights(module: Any, dtype: torch.dtype) -> Any:
    """The weights alone. Module.to would round the rotary frequencies as well, which transformers keeps in fp32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def load_tokenizer(name: str) -> Any:
    return read_tokenizer(resolve_model(name))


def read_tokenizer(files: ModelFiles) -> Any:
    """An adapter's own tokenizer, if its folder has one; else the base's."""
    if files.base == RANDOM_TINY:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    source = str(
        files.adapter if files.adapter and (files.adapter / "tokenizer_config.json").exists() else files.source
    )
    with quiet_transformers(), explain_failure(source):
        if files.gguf is not None and source == files.source:
            tokenizer = AutoTokenizer.from_pretrained(str(files.gguf.parent), gguf_file=files.gguf.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    return with_padding(tokenizer, source)


def with_padding(tokenizer: Any, name: str) -> Any:
    """Padding never reaches a loss (masks come from lengths), so any id will do: the end token, where there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer names no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_own_padding(tokenizer: Any) -> Any:
    """For reward models. Plain transformers takes the score of the last token whose id is not the padding's. With
    pad = eos it would miss the end token of a text, on which we train the score."""
    taken = (tokenizer.eos_token, tokenizer.bos_token)
    others = [token for token in tokenizer.all_special_tokens if token not in taken]
    if tokenizer.pad_token_id == tokenizer.eos_token_id and others:
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token in others else others[0]
    return tokenizer


def resolve_model(name: str) -> ModelFiles:
    """Finds a model's files; an adapter folder leads to its base."""
    if name == RANDOM_TINY:
        return ModelFiles(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name!r}: there is no such GGUF file{suggest_neighbour(path)}")
        return ModelFiles(str(path), gguf=path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            return resolve_adapter(path)
        if not (path / "config.json").exists():
            files = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"model {name!r}: the folder has no config.json (it holds {files}); give the folder of a saved model"
            )
        return ModelFiles(str(path))
    known = catalog.find(name)
    if known is not None and name.lower() == known.name:
        return ModelFiles(str(catalog.fetch(known)))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise unknown_model(name)
    return find_on_hub(name, known)


def resolve_adapter(folder: Path) -> ModelFiles:
    """The base may have been named on another machine: a folder of the catalogue is found again by its name."""
    try:
        name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = resolve_model(Path(name).name if not Path(name).exists() and Path(name).name in catalog.KNOWN else name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, UserError) else f"adapter_config.json cannot be read ({error!r})"
        raise UserError(f"adapter {str(folder)!r}: its base model cannot be found: {reason}") from error
    if base.adapter is not None:
        raise UserError(f"adapter {str(folder)!r}: its base {name!r} is an adapter too; merge that one first")
    return replace(base, adapter=folder)


def find_on_hub(name: str, known: catalog.KnownModel | None) -> ModelFiles:
    """A hub id, if the hub answers; else its local cache, else the catalogue's way to the same model."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if hub_answers():
        try:
            with quiet_transformers():
                hf_hub_download(name, "config.json", etag_timeout=HUB_TIMEOUT)
            return ModelFiles(name)
        except GatedRepoError:
            raise UserError(
                f"model {name!r}: the hub wants you to accept its terms; do so, then `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise unknown_model(name) from None
        except OSError as error:
            log.info("%s: the model hub failed (%s)", name, type(error).__name__)
    if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
        return ModelFiles(name, snapshot=Path(cached).parent)
    if known is not None:
        log.info("%s: the model hub does not answer; taking %s", name, known.name)
        return ModelFiles(str(catalog.fetch(known)))
    raise UserError(
        f"model {name!r}: it is not in the local cache and the model hub does not answer. Download it where there is a "
        f"network and give its folder, or use one of: {', '.join(catalog.KNOWN)}"
    )


@functools.cache
def hub_answers() -> bool:
    """One quick try, once a process: the hub's own client would repeat each of its requests for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # its transport's errors have no common name over versions
        return False
    return True


def unknown_model(name: str) -> UserError:
    names = {*catalog.KNOWN, *(known.hub_id for known in catalog.KNOWN.values()), RANDOM_TINY}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else suggest_neighbour(Path(name).expanduser())
    return UserError(
        f"model {name!r} is neither a folder, a GGUF file, a catalogue name nor a hub id (owner/name){hint}"
    )


def suggest_neighbour(path: Path) -> str:
    """'; did you mean ...' among the neighbours of a path that is not there."""
    neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.5)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def save_model(module: Any, tokenizer: Any, folder: Path) -> None:
    """A plain folder, complete or not there at all."""
    folder = Path(folder)
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    generation = getattr(module, "generation_config", None)
    if generation is not None and generation.do_sample is not True:
        try:
            generation.validate(strict=True)
        except ValueError:  # models on the hub name a temperature without do_sample; transformers will not save that
            generation.do_sample = True
    with quiet_transformers():
        module.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text())
    if config.pop("_attn_implementation", None) or config.pop("attn_implementation", None):
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    replace_folder(scratch, folder)


def tiny_model(*, scalar_head: bool = False, seed: int = 0, **sizes: Any) -> LoadedModel:
    """A random two-layer Llama, the same for the same seed; sizes: values of its configuration."""
    tokenizer = byte_tokenizer()
    return LoadedModel(random_llama(tokenizer, scalar_head=scalar_head, seed=seed, **sizes), tokenizer, RANDOM_TINY)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
def explain_failure(name: str) -> Iterator[None]:
    """What transformers raises for missing or broken files, as one paragraph that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"model {name!r} cannot be loaded: {reason}. Check that the folder is complete, or fetch it again"
        ) from error

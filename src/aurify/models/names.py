"""Finds the files behind a model's name: a folder, an adapter folder, a GGUF file, a short name of the catalogue, or a
hub id."""

from __future__ import annotations

import difflib
import json
import logging
from dataclasses import replace
from pathlib import Path

from aurify.config import suggest_neighbour
from aurify.errors import UserError
from aurify.http import HUB_TIMEOUT, hub_answers
from aurify.models import catalog
from aurify.models.loading import RANDOM_TINY, ModelFiles, quiet_transformers, read_adapter_header

log = logging.getLogger("aurify")


def resolve_model(name: str) -> ModelFiles:
    """The files of a model. An adapter folder leads to its base as well."""
    if name == RANDOM_TINY:
        return ModelFiles(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name!r}: there is no such GGUF file{suggest_neighbour(path)}")
        return ModelFiles(str(path), gguf=path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            return resolve_adapter_model(path)
        if not (path / "config.json").exists():
            files = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"model {name!r}: the folder has no config.json (it holds {files}); give the folder of a saved model"
            )
        return resolve_model_folder(path)
    known = catalog.find_known_model(name)
    if known is not None and name.lower() == known.name:
        return resolve_known_model(known)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise unknown_model(name)
    return find_hub_model(name, known)


def resolve_known_model(known: catalog.KnownModel) -> ModelFiles:
    return ModelFiles(known.hub_id, folder=catalog.fetch_known_model(known), origin=known.name)


def resolve_model_folder(path: Path) -> ModelFiles:
    """A folder of a cache has the name of its model, which other machines know as well."""
    for known in catalog.KNOWN.values():
        if path.resolve() == catalog.cached_model_folder(known).resolve():
            return ModelFiles(known.hub_id, folder=path, origin=known.name)
    parts = path.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return ModelFiles(parts[-3].removeprefix("models--").replace("--", "/"), folder=path)
    return ModelFiles(str(path))


def resolve_adapter_model(folder: Path) -> ModelFiles:
    """An adapter that was trained on a model of the catalogue says so, for the hub's weights differ a little. The base
    may also be a folder of the catalogue on another machine: it is found again by its name."""
    try:
        name = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        if not isinstance(name, str):
            raise UserError("adapter_config.json names none; write its base_model_name_or_path there")
        name = read_adapter_header(folder)[1].get("origin", name)
        base = resolve_model(Path(name).name if not Path(name).exists() and Path(name).name in catalog.KNOWN else name)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, UserError) else f"adapter_config.json cannot be read ({error!r})"
        raise UserError(f"adapter {str(folder)!r}: its base model cannot be found: {reason}") from error
    if base.adapter is not None:
        raise UserError(f"adapter {str(folder)!r}: its base {name!r} is an adapter too; merge that one first")
    return replace(base, adapter=folder)


def find_hub_model(name: str, known: catalog.KnownModel | None) -> ModelFiles:
    """The hub's model if the hub answers; else that of its local cache, else the catalogue's copy of the model."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise unknown_model(name) from None

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
        return ModelFiles(name, folder=Path(cached).parent)
    if known is not None:
        log.info("%s: the model hub does not answer; taking %s", name, known.name)
        return resolve_known_model(known)
    if "/" not in name:  # a few old models have no owner; a typing error is likelier
        raise unknown_model(name)
    raise UserError(
        f"model {name!r}: it is not in the local cache and the model hub does not answer. Download it where there is a "
        f"network and give its folder, or use one of: {', '.join(catalog.KNOWN)}"
    )


def unknown_model(name: str) -> UserError:
    names = {*catalog.KNOWN, *(known.hub_id for known in catalog.KNOWN.values()), RANDOM_TINY}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else suggest_neighbour(Path(name).expanduser())
    offline = "" if hub_answers() else " that is in the local cache, and the model hub does not answer"
    return UserError(
        f"model {name!r} is neither a folder, a GGUF file, a catalogue name nor a hub id (owner/name){offline}{hint}"
    )

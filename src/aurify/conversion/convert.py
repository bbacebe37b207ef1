"""A config of another library becomes a recipe. What is not taken over is listed, with a reason; nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aurify.config import read_yaml
from aurify.conversion.axolotl import convert_axolotl
from aurify.conversion.draft import Draft
from aurify.conversion.llama_factory import convert_llama_factory
from aurify.conversion.trl import convert_trl, guess_trl_method
from aurify.errors import UserError

LIBRARIES = {  # by which keys they are known
    "axolotl": ("base_model", "micro_batch_size", "sequence_len"),
    "llama-factory": ("finetuning_type", "cutoff_len", "dataset_dir", "stage", "template"),
    "trl": ("model_name_or_path", "dataset_name", "per_device_train_batch_size", "learning_rate", "output_dir"),
}


def convert_config(path: Path, library: str | None = None, method: str | None = None) -> Draft:
    """library, method: where they are not to be found by the keys."""
    given = read_foreign_config(path)
    if "stages" in given:
        raise UserError(f"{path}: it has stages and is a recipe already; `aurify train {path} --dry-run` checks it")
    library = library or guess_library(path, given)
    if library == "axolotl":
        draft = convert_axolotl(given, method)
    elif library == "llama-factory":
        draft = convert_llama_factory(given, method, path.parent)
    else:
        draft = convert_trl(given, method or guess_trl_method(given))
        if method is None:
            draft.notes.append(f"method: TRL's configs do not say it; by its keys this is {draft.method} (or --method)")
    draft.leave_the_rest()
    if "name" not in draft.top.get("model", {}):
        draft.notes.append("model: the config names none; set `model:`, or give it as model=NAME to `aurify train`")
    draft.top.setdefault("name", path.stem)
    return draft


def guess_library(path: Path, given: Mapping[str, Any]) -> str:
    for library, keys in LIBRARIES.items():
        if any(key in given for key in keys):
            return library
    raise UserError(
        f"{path}: it has no key of TRL, axolotl or LLaMA-Factory, such as model_name_or_path or base_model; "
        "give --from if it is one of theirs"
    )


def read_foreign_config(path: Path) -> dict[str, Any]:
    """YAML, or JSON. `${...}` stays as it is."""
    from omegaconf import OmegaConf

    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
    else:
        values = OmegaConf.to_container(read_yaml(path), resolve=False)
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: expected a mapping of keys to values; found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}

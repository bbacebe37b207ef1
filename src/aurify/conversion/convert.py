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
    try:
        draft = convert_values(given, library, method, path.parent)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError) as error:  # their programs would refuse it, too
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"a value has another form than {library} writes it in ({reason}); --debug shows where"
        ) from error
    draft.leave_the_rest()
    if "task" not in draft.top and not {"path", "mix"} & draft.stage.get("data", {}).keys():
        where = "task: {name: jsonl, path: ...}" if draft.online else f"stages.{draft.method}.data: {{path: ...}}"
        draft.notes.append(f"data: the config names none; set `{where}`")
    if "name" not in draft.top.get("model", {}):
        draft.notes.append("model: the config names none; set `model:`, or give it as model=NAME to `aurify train`")
    draft.top.setdefault("name", path.stem)
    return draft


def convert_values(given: dict[str, Any], library: str, method: str | None, folder: Path) -> Draft:
    if library == "axolotl":
        return convert_axolotl(given, method)
    if library == "llama-factory":
        return convert_llama_factory(given, method, folder)
    draft = convert_trl(given, method or guess_trl_method(given))
    if method is None:
        draft.notes.append(f"method: TRL's configs do not say it; by its keys this is {draft.method} (or --method)")
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

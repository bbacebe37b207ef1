"""Writes models as plain folders, which transformers and everything built on it load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from aurify.files import replace_folder
from aurify.models.loading import quiet_transformers


def save_model(module: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a folder that is complete or not there at all."""
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

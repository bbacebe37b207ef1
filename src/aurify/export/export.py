"""A trained model in the form that others read: written beside its place, loaded again and compared with the trained
model, described by a model card, and only then moved to its place."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from aurify.export.agreement import Agreement, load_model_to_export
from aurify.export.card import Origin, write_model_card
from aurify.export.folders import MAX_SHARD_SIZE, check_export_size, export_adapter, write_export_folder
from aurify.export.gguf import check_gguf_types, write_gguf
from aurify.export.ollama import NO_TEMPLATE, write_modelfile
from aurify.files import new_folder, replace_text

Format = Literal["folder", "adapter", "gguf", "ollama"]
log = logging.getLogger("aurify")


def export_model(
    format: Format,
    origin: Origin,
    folder: Path,
    *,
    types: Sequence[str] = ("q8_0",),
    max_shard_size: str = MAX_SHARD_SIZE,
    system: str = "",
    parameters: Mapping[str, str] | None = None,
    card: bool = True,
) -> dict[str, Agreement]:
    """Returns of each file or form how well it agrees with the trained model. types: of GGUF; the Modelfile is about
    the first one."""
    check_export_size(max_shard_size)
    if format in ("gguf", "ollama"):
        check_gguf_types(types)
    with new_folder(folder) as scratch:
        trained = load_model_to_export(origin.name)
        if format == "folder":
            found = {"safetensors": write_export_folder(origin.name, trained, scratch, max_shard_size)}
        elif format == "adapter":
            found = {"adapter": export_adapter(origin.name, trained, scratch)}
        else:
            found = write_gguf(origin.name, trained, scratch, types, origin.stem)
        if format == "ollama":
            text = write_modelfile(trained.tokenizer, f"{origin.stem}-{types[0]}.gguf", system, parameters)
            replace_text(scratch / "Modelfile", text)
            if NO_TEMPLATE in text:
                log.info("%s", NO_TEMPLATE.removeprefix("# "))
        if card:
            write_model_card(scratch, folder.name, origin, found, trained)
    return found

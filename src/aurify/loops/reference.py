"""Log-probs of the reference: computed once before the first step, and kept on disk, so that a resumed stage does not
compute them again.

They belong to one model and to one list of data. The file carries a fingerprint of each; where one differs from what
the stage has now, the file is refused, and the tracker's events say which it was. The file keeps float32: what is read
back is what was computed, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aurify.data.encode import Unit
from aurify.files import replaced_file
from aurify.loops.batches import gather_step_batch
from aurify.types import Datum

if TYPE_CHECKING:
    from aurify.engine.engine import Engine
    from aurify.tracking.tracker import StageTracker

FILE = "reference_logprobs.safetensors"


def add_reference_logprobs(
    engine: Engine,
    units: Sequence[Unit],
    batches: Iterable[Sequence[int]],
    tracker: StageTracker,
    cache: Path | None = None,
) -> list[Unit]:
    """Adds the log-probs of the reference, once, to the units that the stage will see. Call it before the first step
    and before a checkpoint is loaded: then the engine needs no second copy of the model.

    batches: the units of each step, in turn. A unit is computed together with those of the first step that sees it, in
    the same rows as the policy is then: so both are rounded alike, and the first margins are 0.
    cache: the file that keeps them. One of another model or of other data is refused, and written anew."""
    first = list_first_reference_uses(batches)
    chosen = [index for _, new in first for index in new]
    flat = [datum for index in chosen for datum in units[index]]
    known, model = None, ""
    if cache is not None:
        model = fingerprint_reference_model(engine)
        known, refused = load_reference_logprobs(cache, model, flat)
        if refused:
            tracker.event(f"{cache}: refused: {refused}")
    if known is None:
        tracker.event(f"reference log-probs of {len(chosen)} rows")
        known = [values for batch, new in first for values in reference_logprobs(engine, units, batch, new)]
        if cache is not None:
            save_reference_logprobs(cache, model, flat, known)
    else:
        tracker.event(f"reference log-probs of {len(chosen)} rows: read from {cache}")
    result, rest = list(units), iter(known)
    for index in chosen:
        result[index] = tuple(replace(datum, ref_logprobs=next(rest)) for datum in units[index])
    return result


def list_first_reference_uses(batches: Iterable[Sequence[int]]) -> list[tuple[Sequence[int], list[int]]]:
    """The batches that bring units for the first time, and which these are."""
    seen: set[int] = set()
    result = []
    for batch in batches:
        if new := [index for index in dict.fromkeys(batch) if index not in seen]:
            result.append((batch, new))
            seen |= set(new)
    return result


def reference_logprobs(
    engine: Engine, units: Sequence[Unit], batch: Sequence[int], new: Sequence[int]
) -> list[list[float]]:
    """Of the data of the new units, in the order of `new`."""
    known = iter(engine.logprobs(gather_step_batch(units, batch), reference=True))
    by_unit = {index: [next(known) for _ in units[index]] for index in batch}
    return [values for index in new for values in by_unit[index]]


# ---------------------------------------------------------------------- the file


def fingerprint_reference_model(engine: Engine) -> str:
    """Of the engine's reference: name, kind and every weight, with the adapter that it began with, if any. To be asked
    for before the first step. Takes about a second for each GB."""
    digest = hashlib.blake2b(f"{engine.name}/{type(engine.module).__name__}".encode(), digest_size=16)
    for name, weight in reference_weights(engine):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reference_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """The weights of the base model, and those of an adapter that training began with. The reference of a fresh adapter
    is the base model alone."""
    for name, parameter in engine.module.named_parameters():
        if not name.rpartition(".")[2].startswith("lora_"):
            yield name.replace(".base.", "."), parameter
    if engine.adapter is not None:
        yield from engine.adapter.reference_tensors()


def fingerprint_reference_data(data: Sequence[Datum]) -> str:
    """Of the tokens, of which of them are trained, and of their order."""
    digest = hashlib.blake2b(digest_size=16)
    for datum in data:
        digest.update(len(datum.tokens).to_bytes(8, "little"))
        digest.update(np.asarray(datum.tokens, dtype=np.int64).data)
        digest.update(np.asarray(datum.weights, dtype=np.float32).data)
    return digest.hexdigest()


def list_trained_tokens(datum: Datum) -> list[int]:
    """Their indices."""
    return [index for index, weight in enumerate(datum.weights) if weight]


def save_reference_logprobs(path: Path, model: str, data: Sequence[Datum], logprobs: Sequence[Sequence[float]]) -> None:
    """logprobs: len(tokens) for each datum; those of trained tokens are kept."""
    values = [row[index] for datum, row in zip(data, logprobs, strict=True) for index in list_trained_tokens(datum)]
    identity = {"model": model, "data": fingerprint_reference_data(data)}
    with replaced_file(path) as scratch:
        save_file({"logprobs": torch.tensor(values, dtype=torch.float32)}, scratch, metadata=identity)


def load_reference_logprobs(path: Path, model: str, data: Sequence[Datum]) -> tuple[list[list[float]] | None, str]:
    """The log-probs, or None and why the file is refused ("" where there is none)."""
    if not path.exists():
        return None, ""
    try:
        with safe_open(path, framework="pt") as file:
            identity, values = file.metadata() or {}, file.get_tensor("logprobs").tolist()
    except (OSError, SafetensorError) as error:
        return None, f"it cannot be read ({error})"
    if identity.get("model") != model:
        return None, "it belongs to another model, or to other weights of this one"
    indices = [list_trained_tokens(datum) for datum in data]
    if identity.get("data") != fingerprint_reference_data(data) or len(values) != sum(map(len, indices)):
        return None, "it belongs to other data"
    rest = iter(values)
    rows = [[0.0] * len(datum.tokens) for datum in data]
    for row, chosen in zip(rows, indices, strict=True):
        for index in chosen:
            row[index] = next(rest)
    return rows, ""

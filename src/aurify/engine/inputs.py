"""Which data the engine trains on, and what it looks up for one row: the nodes to predict, and the data they belong to.

Predictions are shifted here and nowhere else: a node's token is predicted by the hidden state of its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aurify.engine.packing import Row
from aurify.engine.upload import upload_arrays
from aurify.errors import UserError
from aurify.models.embeddings import check_embedding_ids
from aurify.types import SOURCES, Algorithm, Batch, Datum


@dataclass(frozen=True, slots=True)
class Inputs:
    batch: Batch
    parents: Tensor  # [distinct] nodes whose hidden state predicts a token that at least one sequence trains
    targets: Tensor  # [distinct] their tokens
    scatter: Tensor  # [tokens] into `targets`
    last: Tensor  # [sequences] the node that each sequence ends at
    indices: list[tuple[int, int]]  # [tokens] index of the datum, index of the token in it


def select_trained(
    data: Sequence[Datum], algorithm: Algorithm, *, max_context: int, vocabulary: int, has_score: bool
) -> list[Datum]:
    """Checks ids and lengths, and leaves out sequences that have nothing to train."""
    name = type(algorithm).__name__
    for index, datum in enumerate(data):
        if len(datum.tokens) > max_context:
            raise UserError(
                f"sequence {index} has {len(datum.tokens)} tokens; the model's context is {max_context}: shorten it"
            )
        if not datum.tokens:
            raise UserError(f"sequence {index} is empty")
        check_embedding_ids(datum.tokens, vocabulary, f"sequence {index}")
        for need in ("ref_logprobs", "advantages", "logprobs", "old_logprobs"):
            if need in algorithm.needs and getattr(datum, need) is None:
                raise ValueError(f"{name} needs {need}; sequence {index} has none")
    if "scores" in algorithm.needs and not has_score:
        raise UserError("a reward model needs a scalar head; load the model with scalar_head=True")
    if "scores" not in algorithm.needs and has_score:
        raise UserError(f"{name} trains a language model; this one has a scalar head (a reward model)")
    pairs = algorithm.per == "unit" and algorithm.learns_from != "rollouts"
    if has_score or pairs:  # scores are of whole sequences, and a pair stays whole
        return list(data)
    return [datum for datum in data if any(datum.weights)]


def build_row_inputs(row: Row, data: Sequence[Datum], device: torch.device) -> Inputs:
    chosen = [data[k] for k in row.data]
    trained = [np.flatnonzero(np.asarray(datum.weights)) for datum in chosen]
    nodes = np.concatenate([path[t] for path, t in zip(row.nodes, trained, strict=True)])
    predicted, scatter = np.unique(nodes, return_inverse=True)
    units: dict[tuple[int, int], int] = {}
    unit = [units.setdefault((data[k].unit, k if data[k].unit < 0 else -1), len(units)) for k in row.data]
    arrays = {
        "sequence": np.repeat(np.arange(len(chosen)), [len(t) for t in trained]),
        "unit": np.array(unit, dtype=np.int64),
        "source": np.concatenate([read_token_writers(datum)[t] for datum, t in zip(chosen, trained, strict=True)]),
        "parents": row.parent[predicted],
        "targets": row.tokens[predicted],
        "scatter": scatter.reshape(-1),
        "last": np.array([path[-1] for path in row.nodes]),
    }
    for name in ("margin", "label", "baseline"):
        arrays[name] = np.array([getattr(datum, name) for datum in chosen], dtype=np.float32)
    for name in ("weights", "advantages", "logprobs", "old_logprobs", "ref_logprobs"):
        values = read_token_values(chosen, name, trained)
        if values is not None:
            arrays[name] = values
    tensors = dict(zip(arrays, upload_arrays(list(arrays.values()), device), strict=True))
    own = {name: tensors.pop(name) for name in ("parents", "targets", "scatter", "last")}
    batch = Batch(num_sequences=len(chosen), num_units=len(units), **tensors)
    indices = [(k, int(t)) for k, ts in zip(row.data, trained, strict=True) for t in ts]
    return Inputs(batch, **own, indices=indices)


def read_token_values(data: Sequence[Datum], name: str, trained: Sequence[np.ndarray]) -> np.ndarray | None:
    """[tokens] fp32: what the data say of their trained tokens under `name`; None if none says anything."""
    missing = [getattr(datum, name) is None for datum in data]
    if all(missing):
        return None
    if any(missing):
        raise ValueError(f"some data of one call have {name} and some have none")
    return np.concatenate(
        [np.asarray(getattr(datum, name), dtype=np.float32)[t] for datum, t in zip(data, trained, strict=True)]
    )


def read_token_writers(datum: Datum) -> np.ndarray:
    """[tokens] int64, index into SOURCES. A token that a guide wrote counts as guidance in any sequence."""
    source = np.full(len(datum.tokens), SOURCES.index(datum.source))
    if datum.guided is not None:
        source[np.asarray(datum.guided, dtype=bool)] = SOURCES.index("guidance")
    return source

"""The second stage of a search: models that look at a query and a passage together, and order the few passages that the
first stage found.

A cross-encoder reads both as one text: the most exact, and the slowest. Late interaction (ColBERT, Khattab and Zaharia
2020) encodes each on its own and sums, over the tokens of the query, the best match among those of the passage. Needs
sentence-transformers (extra `memory`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from aurify.errors import UserError
from aurify.files import require
from aurify.knowledge.embedding import MINILM, MOST_CHARS, batch_texts_by_length, find_minilm
from aurify.knowledge.types import Reranker

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, MultiVectorEncoder

BATCH = 16  # pairs in one call of a model
MAX_KEPT = 1000  # passages; of 256 tokens and 384 numbers each, 400 MB
KINDS = "cross-encoder:MODEL or maxsim:MODEL, where MODEL is a folder or a hub id"


class CrossEncoderReranker:
    """model: a folder or hub id of a cross-encoder with one output, which scores (query, passage)."""

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        self.name = f"cross-encoder:{model}"
        self.model: CrossEncoder = load_sentence_model("CrossEncoder", self.name, find_reranker_folder(model), device)
        if not is_cross_encoder(find_reranker_folder(model)):
            raise UserError(
                f"reranker {self.name!r}: this model has no trained layer that scores a pair, so it would rank at "
                "random; expected a cross-encoder, such as cross-encoder/ms-marco-MiniLM-L6-v2. An embedding model can "
                f"serve as maxsim:{model}"
            )
        if self.model.num_labels != 1:
            raise UserError(
                f"reranker {self.name!r} gives {self.model.num_labels} numbers a pair; expected a cross-encoder with "
                "one, such as cross-encoder/ms-marco-MiniLM-L6-v2"
            )

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """The model's own outputs, before any sigmoid: that would round confident scores to the same 1."""
        from torch import nn

        if not texts:
            return []
        pairs = [(query, text) for text in texts]
        found = self.model.predict(pairs, batch_size=BATCH, activation_fn=nn.Identity(), show_progress_bar=False)
        return [float(score) for score in found]


class MaxSimReranker:
    """model: a folder or hub id of a late-interaction model, or of a plain embedding model, whose token vectors serve
    as well. The vectors of the last passages are kept: computing them takes nearly all of the time."""

    def __init__(self, model: str, *, device: str = "cpu", max_kept: int = MAX_KEPT) -> None:
        self.name = f"maxsim:{model}"
        folder = find_reranker_folder(model)
        loaded = load_sentence_model("MultiVectorEncoder", self.name, folder, device)
        self.model: MultiVectorEncoder = drop_random_projection(loaded, folder)
        self.max_kept = max_kept  # passages
        self.kept: dict[str, Any] = {}  # text -> [tokens, dim], the one used last at the end
        self.lock = Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """From -1 to 1: the sum over the query's tokens, divided by their number."""
        from sentence_transformers.util import mean_maxsim

        if not texts:
            return []
        asked = self.model.encode_query([query], show_progress_bar=False)
        with self.lock:
            passages = self._encode(texts)
        return mean_maxsim(asked, passages)[0].tolist()

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        new = list(dict.fromkeys(text for text in texts if text not in self.kept))
        found = {text: self.kept.pop(text) for text in dict.fromkeys(texts) if text in self.kept}
        for indices in batch_texts_by_length([len(text) for text in new], BATCH, MOST_CHARS):
            batch = [new[index] for index in indices]
            vectors = self.model.encode_document(batch, batch_size=BATCH, show_progress_bar=False)
            found.update(zip(batch, vectors, strict=True))
        self.kept.update(found)
        for text in list(self.kept)[: max(0, len(self.kept) - self.max_kept)]:
            del self.kept[text]
        return [found[text] for text in texts]


def load_reranker(name: str | None, *, device: str = "cpu") -> Reranker | None:
    """From a command line or a recipe; None, "" and "none" stand for no second stage."""
    if name in (None, "", "none"):
        return None
    kind, _, model = str(name).partition(":")
    if kind == "cross-encoder" and model:
        return CrossEncoderReranker(model, device=device)
    if kind == "maxsim" and model:
        return MaxSimReranker(model, device=device)
    raise UserError(f"reranker {name!r}: expected {KINDS}, or none")


def find_reranker_folder(model: str) -> str:
    """The folder of a model, or its hub id."""
    folder = find_minilm() if model.lower() == MINILM else Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def load_sentence_model(kind: str, name: str, folder: str, device: str) -> Any:
    library = require("sentence_transformers", "memory", f"to load reranker {name!r}")
    from aurify.models.loading import quiet_transformers

    try:
        with quiet_transformers():
            return getattr(library, kind)(folder, device=device)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise UserError(
            f"reranker {name!r}: no model could be loaded from {folder!r} ({reason}). Give the folder of a model that "
            f"you have, or a hub id that can be reached ({KINDS}), or leave the second stage out"
        ) from error


def is_cross_encoder(folder: str) -> bool:
    """False where sentence-transformers has added the scoring layer at random."""
    if read_reranker_file(folder, "config_sentence_transformers.json").get("model_type") == "CrossEncoder":
        return True
    return any(name.endswith("ForSequenceClassification") for name in read_reranker_architectures(folder))


def drop_random_projection(model: MultiVectorEncoder, folder: str) -> MultiVectorEncoder:
    """sentence-transformers adds a random projection of the token vectors where a model has none; they are better as
    they are."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense

    saved = any(
        str(module.get("type", "")).endswith("Dense") for module in read_reranker_file(folder, "modules.json") or []
    )
    if (
        saved
        or "HF_ColBERT" in read_reranker_architectures(folder)
        or not any(isinstance(module, Dense) for module in model)
    ):
        return model
    kept = [module for module in model if not isinstance(module, Dense)]
    prompts = {task: prompt for task, prompt in model.prompts.items() if prompt is not None}
    return MultiVectorEncoder(modules=kept, prompts=prompts, device=str(model.device))


def read_reranker_architectures(folder: str) -> list[str]:
    return read_reranker_file(folder, "config.json").get("architectures") or []


def read_reranker_file(folder: str, file: str) -> Any:
    """A file of a model, from its folder or the hub; empty where the model has none of that name."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(folder, file)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

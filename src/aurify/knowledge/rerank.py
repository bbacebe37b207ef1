"""The second stage of a search: models that look at a query and a passage together, and order the few that the first
stage found.

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
from aurify.knowledge.embedding import MINILM, MOST_CHARS, batches, minilm_folder, without_bars
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
        self.model: CrossEncoder = load(self.name, model, device)
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
    """model: a folder or hub id of a late-interaction model; a plain embedding model takes part with the vectors of its
    tokens. Those of the passages that were looked at last are kept: computing them takes nearly all of the time."""

    def __init__(self, model: str, *, device: str = "cpu", max_kept: int = MAX_KEPT) -> None:
        self.name = f"maxsim:{model}"
        self.model: MultiVectorEncoder = load(self.name, model, device)
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
            passages = self.passages(texts)
        return mean_maxsim(asked, passages)[0].tolist()

    def passages(self, texts: Sequence[str]) -> list[Any]:
        new = list(dict.fromkeys(text for text in texts if text not in self.kept))
        found = {text: self.kept.pop(text) for text in dict.fromkeys(texts) if text in self.kept}
        for places in batches([len(text) for text in new], BATCH, MOST_CHARS):
            batch = [new[place] for place in places]
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


def load(name: str, model: str, device: str) -> Any:
    """The model behind a reranker's name, with every weight that it needs: sentence-transformers would add missing
    layers at random, and rank by them."""
    try:
        import sentence_transformers
    except ModuleNotFoundError:
        raise UserError(
            f"reranker {name!r} needs sentence-transformers; install it with: pip install 'aurify[memory]'"
        ) from None
    folder = minilm_folder() if model.lower() == MINILM else Path(model).expanduser()
    place = str(folder) if folder.is_dir() else model
    try:
        with without_bars():
            if name.startswith("maxsim:"):
                return without_random_projection(sentence_transformers.MultiVectorEncoder(place, device=device), place)
            loaded = sentence_transformers.CrossEncoder(place, device=device)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"reranker {name!r}: no model could be loaded from {model!r} ({(str(error).splitlines() or ['?'])[0]}). "
            f"Give the folder of a model that you have, or a hub id that can be reached ({KINDS}), or leave the second "
            "stage out"
        ) from error
    if not is_cross_encoder(place):
        raise UserError(
            f"reranker {name!r}: this model has no trained layer that scores a pair, so it would rank at random; "
            "expected a cross-encoder, such as cross-encoder/ms-marco-MiniLM-L6-v2. An embedding model can serve as "
            f"maxsim:{model}"
        )
    return loaded


def is_cross_encoder(place: str) -> bool:
    if read_json(place, "config_sentence_transformers.json").get("model_type") == "CrossEncoder":
        return True
    return any(name.endswith("ForSequenceClassification") for name in architectures(place))


def without_random_projection(model: MultiVectorEncoder, place: str) -> MultiVectorEncoder:
    """A model that was saved without a projection of its token vectors gets a random one; they are better as they
    are."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense

    saved = any(str(module.get("type", "")).endswith("Dense") for module in read_json(place, "modules.json") or [])
    if saved or "HF_ColBERT" in architectures(place) or not any(isinstance(module, Dense) for module in model):
        return model
    kept = [module for module in model if not isinstance(module, Dense)]
    prompts = {task: prompt for task, prompt in model.prompts.items() if prompt is not None}
    return MultiVectorEncoder(modules=kept, prompts=prompts, device=str(model.device))


def architectures(place: str) -> list[str]:
    return read_json(place, "config.json").get("architectures") or []


def read_json(place: str, file: str) -> Any:
    """A file of a model, from its folder or the hub; empty where it has none of that name."""
    from sentence_transformers.util import load_file_path

    path = load_file_path(place, file)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

